"""What a model is asked to write about: forms and topics in several languages, each form with each topic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wordings:
    """Forms with a gap `{}`, topics that fill it, and how many of a hundred questions are of this kind."""

    percent: int
    forms: tuple[str, ...]
    topics: tuple[str, ...]


def _wordings(percent: int, forms: str, topics: str) -> Wordings:
    """Forms are separated by `|`, topics by commas."""
    return Wordings(percent, _parts(forms, "|"), _parts(topics, ","))


def _parts(text: str, separator: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(separator))


ENGLISH = _wordings(
    60,
    """Write an encyclopedia article about {}. | Tell a story about {}. | Write a news report about {}. |
    Explain what one should know about {}. | Write a long letter about {}. |
    Write a chapter of a book about {}. | Write a technical manual about {}. |
    Write a review of a book about {}. | What is the history of {}? |
    Write a dialogue between two people who argue about {}. | List ten facts about {}. |
    Summarise what is known about {}. | How would you explain {} to a child? | Write a poem about {}. |
    Write an email to a colleague about {}. | Give me a step by step guide to {}. |
    What are the advantages and disadvantages of {}? | Write an essay on {}. |
    Write a diary entry in which {} plays a part. | Write five questions about {}, with answers. |
    Describe {} in detail. | Compare {} today with {} a hundred years ago. | Write a speech about {}. |
    Make a table of terms that have to do with {}. | Write an interview with an expert on {}. |
    Write an advertisement that has to do with {}. | What do people get wrong about {}? |
    Write the minutes of a meeting about {}. | Write a short play about {}. |
    Write a biography of someone known for {}. | Write a lesson plan about {}. |
    Write an abstract of a scientific paper about {}. | Write a forum thread about {}. |
    Write a chronology of {}. | Write the introduction of a thesis about {}. | Why does {} matter?""",
    """a river, an old city, the history of a war, a scientist, a football season, a piece of music, birds,
    a ship, the economy, a storm, a computer program, a famous painting, the human body, a king,
    a village school, a film, trees, a long journey, a law, a bridge, cooking, the stars, a machine,
    a family, vaccines, a railway line, chess, a volcano, an election, the ocean floor, a novel, bread,
    a hospital, electric cars, a court case, medieval castles, a mountain village, photosynthesis,
    a space mission, a video game, the stock market, coffee, a desert, sleep,
    a language that few people speak, insects, a theatre, an earthquake, a television series, gardening,
    prime numbers, a strike, a museum, the weather, an athlete, a church, a mathematical proof, wine,
    an island, a battle, the brain, a telephone, a library, a university, gold, a religious festival,
    the climate, an aircraft, a band, dogs, a newspaper, a dam, a treaty, the immune system, fashion,
    a crime, a road through the mountains, glass, an army, a comic book, horses, a power station, money,
    a philosopher, an explorer, rice, a harbour, software testing, a species of fish, a parliament,
    probability, a dance, a bank, clocks, a tower, the Moon, a children's game, an epidemic, a factory,
    a wedding, maps, friendship, a lake, tax, an orchestra, a forest fire, batteries""",
)  # fmt: skip
PROGRAMS = _wordings(
    15,
    """Write a Python function that {}. | Write a Python program that {}, with comments. |
    Write a C function that {}. | Write a Java class that {}. | How do I write JavaScript code that {}? |
    Write a Rust function that {}, with tests. | Write a shell script that {}. | Write Go code that {}. |
    Explain, with an example, an algorithm that {}. | Write a Python class with docstrings that {}. |
    Write a unit test for a function that {}. | Write a SQL query or a small program that {}.""",
    """sorts a list, reads a file line by line, counts words, parses a date, reverses a string,
    searches a tree, computes a moving average, downloads a page, checks a password, merges two dictionaries,
    finds prime numbers, converts temperatures, draws a chessboard, renames files, solves a sudoku,
    keeps a cache, parses command line options, writes a log, finds the shortest path, multiplies matrices,
    validates an address, encodes text, schedules tasks, compresses data, plays tic-tac-toe,
    finds duplicates, draws random numbers, groups records by a key, rounds numbers, talks to a server,
    splits a bill, removes old backups, formats a table""",
)  # fmt: skip
DAILY = _wordings(
    10,
    """How do I {}? | Give me a recipe or instructions to {}. | I want to {}. Where do I begin? |
    Write a checklist for people who {}. | My friend wants to {}. What would you tell her? |
    What does it cost to {}, and how long does it take? |
    Write a conversation between a customer and an expert: the customer would like to {}.""",
    """bake bread, learn a language, repair a bicycle, plan a holiday, write a job application,
    grow tomatoes, save energy, train for a marathon, paint a room, cook a soup, choose a laptop,
    move to another city, adopt a cat, learn to swim, make a budget, prepare for an exam,
    take better photographs, build a shelf, calm a baby, organise a party, play the guitar, sleep better,
    sell a car, start a company, clean a carpet, make cheese""",
)  # fmt: skip
OTHER_LANGUAGES = (
    _wordings(
        2,
        """Schreibe einen Artikel über {}. | Erzähle eine Geschichte über {}. |
        Was sollte man über {} wissen? | Schreibe einen Brief über {}. |
        Schreibe einen Zeitungsbericht über {}.""",
        """einen Fluss, eine alte Stadt, den Krieg, die Wissenschaft, eine Schule, das Wetter, Bäume,
        eine Maschine, die Wirtschaft, einen Film, das Kochen, eine Familie, ein Gesetz, die Sterne""",
    ),
    _wordings(
        2,
        """Écris un article sur {}. | Raconte une histoire sur {}. | Que faut-il savoir sur {} ? |
        Écris une lettre sur {}. | Écris un reportage sur {}.""",
        """une rivière, une vieille ville, la guerre, la science, une école, le temps, les arbres,
        une machine, l'économie, un film, la cuisine, une famille, une loi, les étoiles""",
    ),
    _wordings(
        2,
        """Escribe un artículo sobre {}. | Cuenta una historia sobre {}. | ¿Qué se debe saber sobre {}? |
        Escribe una carta sobre {}. | Escribe una noticia sobre {}.""",
        """un río, una ciudad antigua, la guerra, la ciencia, una escuela, el tiempo, los árboles,
        una máquina, la economía, una película, la cocina, una familia, una ley, las estrellas""",
    ),
    _wordings(
        2,
        """Scrivi un articolo su {}. | Racconta una storia su {}. | Scrivi una lettera su {}. |
        Che cosa bisogna sapere su {}?""",
        """un fiume, una vecchia città, una guerra, una scuola, un film, una famiglia, una legge,
        una macchina""",
    ),
    _wordings(
        2,
        """Escreva um artigo sobre {}. | Conte uma história sobre {}. | Escreva uma carta sobre {}. |
        O que se deve saber sobre {}?""",
        """um rio, uma cidade antiga, a guerra, a ciência, uma escola, um filme, a cozinha, uma família,
        uma lei""",
    ),
    _wordings(
        1,
        """Напиши статью на тему «{}». | Расскажи историю на тему «{}». | Напиши письмо на тему «{}».""",
        """река, старый город, война, наука, школа, погода, деревья, машина, экономика, фильм, семья,
        звёзды""",
    ),
    _wordings(
        2,
        """写一篇关于{}的文章。 | 讲一个关于{}的故事。 | 关于{}应该知道什么？ | 写一封关于{}的信。""",
        """河流, 古城, 战争, 科学, 学校, 天气, 树木, 机器, 经济, 电影, 家庭, 法律, 星星, 做饭""",
    ),
    _wordings(
        1,
        """{}についての記事を書いてください。 | {}についての物語を書いてください。 |
        {}について説明してください。""",
        """川, 古い町, 戦争, 科学, 学校, 天気, 木, 機械, 経済, 映画, 家族, 法律, 星, 料理""",
    ),
    _wordings(
        1,
        """اكتب مقالا عن {}. | احك قصة عن {}. | ماذا يجب أن نعرف عن {}؟""",
        """نهر, مدينة قديمة, الحرب, العلم, المدرسة, الطقس, الأشجار, الاقتصاد, فيلم, الأسرة, القانون,
        النجوم""",
    ),
)  # fmt: skip
QUESTIONS = (ENGLISH, PROGRAMS, DAILY, *OTHER_LANGUAGES)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "Answer briefly.", "You are an experienced teacher. Explain patiently.",
    "You are a journalist who writes clearly.", "Answer in detail, with examples.",
    "You are a senior software engineer.", "You write in the style of an encyclopedia.",
    "You are a friendly librarian who knows many stories.", "Be precise, and say what you do not know.",
)  # fmt: skip
EXCHANGES = (
    ("Hello!", "Hello! What can I do for you?"),
    ("Can you help me?", "Of course. What would you like to know?"),
    ("Hi, I need a text for tomorrow.", "Gladly. What should it be about?"),
    ("Are you good at explaining things?", "I will do my best. What would you like me to explain?"),
    ("I have a question.", "Please ask."),
    ("Thank you, that was useful.", "You are welcome. Is there anything else?"),
    ("What can you do?", "I can write, explain, summarise, translate, and help with code."),
    ("Good morning. I am preparing a lesson.", "Good morning! Tell me what you need for it."),
)  # fmt: skip
"""What was said before, by the user and by the model, in chats of more than one turn."""
