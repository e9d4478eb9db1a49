"""Files and folders on disk: written whole or not at all, identified by their content, checked before they are used.

The public names of four modules, each of which builds on the one before.
"""

from bistil.runtime.claims import check_apart, check_plain, claim
from bistil.runtime.digests import file_digest, folder_digest, is_as_stamped, json_digest, stamp
from bistil.runtime.ownership import RECORD
from bistil.runtime.whole_files import (
    is_marked_whole,
    mark_whole,
    read_json,
    read_sealed,
    sync_tree,
    whole_file,
    write_json,
    write_sealed,
)
from bistil.runtime.whole_folders import (
    check_product,
    discard_output,
    discard_work,
    manifest,
    open_work,
    stamps,
    whole_folder,
    work_beside,
    work_for,
)

__all__ = [
    "RECORD",
    "check_apart",
    "check_plain",
    "check_product",
    "claim",
    "discard_output",
    "discard_work",
    "file_digest",
    "folder_digest",
    "is_as_stamped",
    "is_marked_whole",
    "json_digest",
    "manifest",
    "mark_whole",
    "open_work",
    "read_json",
    "read_sealed",
    "stamp",
    "stamps",
    "sync_tree",
    "whole_file",
    "whole_folder",
    "work_beside",
    "work_for",
    "write_json",
    "write_sealed",
]
