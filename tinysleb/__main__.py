"""`python -m tinysleb`, also what `torchrun -m tinysleb` starts."""

from tinysleb.cli import main

main(prog_name="tinysleb")
