"""Names as foreign shop systems keep them: a first and a last name, which are one name to us."""

import re

CJK = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]")


def full_name(first: object, last: object) -> str:
    """One name of two parts: 王 + 小明 without a space and the family name first, Ann + Lee with one. "" when both are empty."""
    given, family = (str(part or "").strip() for part in (first, last))
    if CJK.search(given + family):
        return family + given
    return f"{given} {family}".strip()
