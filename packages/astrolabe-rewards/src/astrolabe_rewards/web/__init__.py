"""What a server needs against bad clients; it knows of no rewards and loads no torch.

`connections` bounds how many there are and how long they may take; `door` lets requests in.
"""

from typing import Final

#: What still comes of a refused request is not worth reading.
LAST: Final = {"Connection": "close"}
#: Set in the scope of a request after whose body more came before it was answered.
EXCESS: Final = "astrolabe.excess"
