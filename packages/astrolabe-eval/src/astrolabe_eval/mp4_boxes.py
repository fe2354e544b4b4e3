"""Whether an mp4 file is all there: ffmpeg plays what is left of a short one and says nothing."""

from pathlib import Path
from typing import Final

from astrolabe_eval.errors import VideoError
from astrolabe_eval.input_files import check_file

#: What may follow one another in a file (ISO/IEC 14496-12, 6.2.3, and QuickTime).
_BOXES: Final = frozenset(
    b"ftyp pdin moov moof mfra mdat free skip wide meta meco styp sidx ssix prft emsg uuid udta "
    b"pnot PICT imda".split()
)


def check_complete(path: Path) -> None:
    """Refuse what is no file, and an mp4 whose boxes announce more bytes than the file has.

    A box starts with its size in 4 bytes and its type in 4. What follows the last box and is none
    (some programs append a signature or padding) is nothing that could be missing.

    Raises:
        VideoError: If it is no file that can be read, or an mp4 that is cut short.
    """
    try:
        check_file(path)
    except FileNotFoundError:
        raise VideoError(f"There is no video file {str(path)!r}. Check the path.") from None
    except OSError as error:
        raise VideoError(
            f"The video {str(path)!r} cannot be read ({error.strerror}). Name a file that you may "
            "read."
        ) from error
    total = path.stat().st_size
    with path.open("rb") as file:
        if file.read(12)[4:8] != b"ftyp":
            return
        position, indexed = 0, False
        while position < total:
            file.seek(position)
            header = file.read(16)
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if indexed and kind not in _BOXES:
                return
            indexed = indexed or kind == b"moov"
            if size == 1:  # a 64-bit size follows the type
                size = int.from_bytes(header[8:16], "big")
            if size == 0:  # up to the end of the file
                return
            if len(header) < 8 or size < 8 or position + size > total:
                raise VideoError(
                    f"{str(path)!r} is cut short: it has {total} bytes and its part at byte "
                    f"{position} announces {max(size, 8)}. Copy or write it again."
                )
            position += size
