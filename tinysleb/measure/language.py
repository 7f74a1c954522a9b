"""Which language a text is in, by its commonest words."""

from __future__ import annotations

import re
from collections import Counter

COMMON_WORDS = {
    "en": """the of and to in is that it for was on are with as be this by at from have or not which you they
    he she we an can will would there their your its if but when what""",
    "de": """der die das und ist in den von zu mit sich auf für nicht ein eine einen dem des auch als es an
    werden aus er hat dass sie nach wird bei einer um am sind noch wie über so oder""",
    "fr": """le la les de des et est un une du dans en que qui pour pas au ce il elle sur plus par avec sont
    son sa ses nous vous ou mais être cette ces aux leur très""",
    "es": """el la los las de y es en un una que por con para no se su al lo como más pero sus le ya o este
    sí porque esta entre cuando muy sin sobre también del son ser""",
}
"""Those that make up a third of any text; some belong to several languages."""
WORDS = {language: frozenset(words.split()) for language, words in COMMON_WORDS.items()}


def language_of(text: str) -> str | None:
    """The language that has the most of a text's words among its commonest; None without any."""
    words = Counter(re.findall(r"[^\W\d_]+", text.lower()))
    hits = {language: sum(words[word] for word in common) for language, common in WORDS.items()}
    best = max(hits, key=lambda language: hits[language])
    return best if hits[best] else None
