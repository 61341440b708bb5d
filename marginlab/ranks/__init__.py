"""Collectives with gradient, and words between ranks; without a process group none does anything."""

from marginlab.ranks.collectives import Gradients as Gradients
from marginlab.ranks.collectives import all_equal as all_equal
from marginlab.ranks.collectives import counts as counts
from marginlab.ranks.collectives import gather as gather
from marginlab.ranks.collectives import local as local
from marginlab.ranks.collectives import own as own
from marginlab.ranks.collectives import shard as shard
from marginlab.ranks.collectives import shard_like as shard_like
from marginlab.ranks.collectives import share as share
from marginlab.ranks.collectives import share_buffers as share_buffers
from marginlab.ranks.collectives import statistic as statistic
from marginlab.ranks.collectives import total as total
from marginlab.ranks.collectives import whole as whole
from marginlab.ranks.exchange import accepted as accepted
from marginlab.ranks.exchange import agreed as agreed
from marginlab.ranks.exchange import alike as alike
from marginlab.ranks.exchange import broadcast as broadcast
from marginlab.ranks.exchange import differences as differences
from marginlab.ranks.exchange import first as first
from marginlab.ranks.exchange import of_all as of_all
from marginlab.ranks.group import PATIENCE as PATIENCE
from marginlab.ranks.group import join as join
from marginlab.ranks.group import leave as leave
from marginlab.ranks.group import rank as rank
from marginlab.ranks.group import size as size
