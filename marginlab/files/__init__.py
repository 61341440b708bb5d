"""Files that survive a kill, are locked by one process at a time, and are read with suspicion.

locks        a lock that one process holds at a time
regular      written whole or not at all, and never through a link
tables       csv text
untrusted    zip files of strangers, each entry with a verified checksum
"""

from marginlab.files.locks import Lock as Lock
from marginlab.files.regular import append as append
from marginlab.files.regular import content_of as content_of
from marginlab.files.regular import encoded as encoded
from marginlab.files.regular import open_own as open_own
from marginlab.files.regular import open_regular as open_regular
from marginlab.files.regular import refuse_links as refuse_links
from marginlab.files.regular import write as write
from marginlab.files.tables import csv_text as csv_text
