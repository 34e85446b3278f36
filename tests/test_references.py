"""Every arXiv number in the repository is one of docs/references.md, and of the paper that is named beside it."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = "docs/references.md"
NUMBER = r"arxiv[\s.:]*(?:org/\w+/)?(\d{4}\.\d{4,5})"
# What names the paper: the text of the link, or what stands before the number in the same brackets.
NAMED = re.compile(rf"[(\[]([^()\[\]]+?)(?:\]\(https?://|,\s+){NUMBER}", re.IGNORECASE)
# Number, number in the link, authors, title, year.
PAPERS = re.findall(
    rf"^\| \[([\d.]+)\]\(https://{NUMBER}\) \| (.+) \| (.+) \| (\d{{4}}) \|$",
    (ROOT / LIST).read_text(),
    re.MULTILINE | re.IGNORECASE,
)


def cited() -> dict[str, str]:
    """The text of each tracked file that speaks of arXiv, but the list's own."""
    command = ["git", "grep", "-lIi", "arxiv"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name: (ROOT / name).read_text() for name in found.splitlines() if name != LIST}


def test_the_list_has_what_is_cited_and_nothing_else() -> None:
    numbers = {number for text in cited().values() for number in re.findall(NUMBER, text, re.IGNORECASE)}
    assert all(number == linked for number, linked, *_ in PAPERS)
    assert sorted(number for number, *_ in PAPERS) == sorted(numbers)


def test_a_citation_names_the_paper_of_its_number() -> None:
    papers = {number: (authors.split(",")[0], title, year) for number, _, authors, title, year in PAPERS}
    citations = [(name, *found) for name, text in cited().items() for found in NAMED.findall(text)]
    assert len(citations) >= 20
    for name, named, number in citations:
        author, title, year = papers[number]
        by_author = re.match(r"([\w-]+).*(\d{4})$", named)
        right = by_author.groups() == (author, year) if by_author else title.startswith(named)
        assert right, f"{name}: {named} is not arXiv {number}"
