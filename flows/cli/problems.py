"""What an error means to whoever typed the command: the exit code, and words that say what to do."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from infra.asked import AskedWrongly
from infra.settings import InvalidSettings, load_settings

DID_NOT_WORK, ASKED_WRONGLY = 1, 2
OURS = {"flows", "tasks", "models", "infra"}

_OF_SYSTEM = {
    errno.ENOENT: "there is no such file or folder. Is the drive mounted, the path right?",
    errno.EACCES: "this user has no right to it. Give the right, or name another place",
    errno.EPERM: "this user has no right to it. Give the right, or name another place",
    errno.EROFS: "nothing can be written there. Name another place",
    errno.EEXIST: "something else lies there. Move it, or name another place",
    errno.ENOTDIR: "a file lies where a folder is needed. Move it, or name another place",
    errno.EISDIR: "a folder lies where a file is needed. Move it, or name another place",
    errno.ENOSPC: "no room is left on the disk. Free some, and run again",
    errno.EDQUOT: "no room is left for this user. Free some, and run again",
    errno.EMFILE: "too many files are open. Raise the limit (ulimit -n), and run again",
    errno.EIO: "the disk does not take or give the data. Is it failing?",
}


def exit_code(error: Exception) -> int:
    """2 if the command was asked wrongly, 1 if it did not work."""
    return ASKED_WRONGLY if isinstance(error, AskedWrongly) else DID_NOT_WORK


def speaks_for_itself(error: Exception) -> bool:
    """Errors of our own, and those of the operating system, say what to do; any other is a bug and shows its trace."""
    return type(error).__module__.split(".")[0] in OURS or isinstance(error, OSError)


def words(error: Exception) -> str:
    """What an error says to a person."""
    if isinstance(error, OSError) and error.errno is not None:
        return _of_system(error)
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def _of_system(error: OSError) -> str:
    """Which path, what is wrong with it, and what to do: not a number and a name of C."""
    number = error.errno or 0
    if error.strerror and error.strerror != os.strerror(number):
        return error.strerror  # in our own words, where they are known better
    told = _OF_SYSTEM.get(number) or os.strerror(number)
    home = None
    with suppress(InvalidSettings):
        home = load_settings().home_folder
    if error.filename is None:
        return told if home is None else f"{told} (the home folder is {home})"
    place = Path(os.fsdecode(error.filename)).absolute()
    of_home = home is not None and (place.is_relative_to(home) or home.is_relative_to(place))
    return f"{place}: {told}" + (" (VISAGE_HOME names the home folder)" if of_home else "")
