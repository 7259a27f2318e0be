"""What a kill has left half-written in a run folder, told from a user's files by name and place. See `files.whole`."""

from __future__ import annotations

import re
from pathlib import Path

from onepolicy.files import remove

EVALUATION = r"(?:final|step-\d+|lambda-[^/]+|\d+-[^/]+)\.json"
# Where a run writes beside a name and renames, and the names there: only of these is a leftover removed.
WRITTEN = {
    ".": r"(?:config\.yaml|(?:run|done|check|teachers|sweep)\.json|(?:metrics|samples)\.jsonl|report\.(?:html|md)"
    r"|model|\.sweep\.tmp)",
    "checkpoints": r"step-\d{6,}",
    "eval": EVALUATION,
    "rollouts": r"(?:[^/]+\.jsonl|summary\.json|teachers\.json)",
    "branches/*": "model",
    "branches/*/eval": EVALUATION,
}
SWEEP = ".sweep.tmp"  # the model of a sweep that was under way


def remove_leftovers(run: Path) -> None:
    """Only what `files.whole` makes, `.NAME.tmp`, of a name that a run writes, at the place where it writes it."""
    for place, names in WRITTEN.items():
        ours = re.compile(rf"\.{names}\.tmp")
        for folder in [run] if place == "." else sorted(run.glob(place)):
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if ours.fullmatch(path.name):
                    remove(path)
    remove(run / SWEEP)
