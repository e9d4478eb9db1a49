"""What the operating system refuses a user, in one line."""

import errno
import os

from bistil.runtime.insides import is_torch_writer_s, system_error_number

# Because of the user's disk, rights or paths.
_REFUSED = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST,
    errno.EISDIR, errno.ENAMETOOLONG, errno.EIO,
}  # fmt: skip


def system_refusal(error: Exception) -> str | None:
    """One line for an error of the operating system that the user can do something about; None for all others."""
    number, where = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    if number is None:
        number = errno.ENOSPC if is_torch_writer_s(error) else system_error_number(error)
    if number is None or number not in _REFUSED:
        return None
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = "make room, and the same command goes on" if full else "name another folder or mend its permissions"
    return f"cannot write {where or 'a file'}: {os.strerror(number)}: {what}"
