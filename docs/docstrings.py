"""How the reference reads docstrings: `name : what it is` in a numpydoc section describes; types are annotations."""

import re

from griffe import Extension

SECTION = re.compile(r"^(?:Attributes|Parameters)\n-+\n(?:.*\n?)*?(?=^\S.*\n-{3,}$|\Z)", re.MULTILINE)
ENTRY = re.compile(r"^([\w, *]+?) : (.+)$", re.MULTILINE)


class Described(Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = SECTION.sub(lambda section: ENTRY.sub(r"\1\n    \2", section[0]), text)
