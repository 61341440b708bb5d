"""marginlab: a contrastive-versus-margin lab.

Rooms, from the ground up: `rng`, `ranks`, `settings`; `kernels`; `measures`, `evaluation`;
`losses`, `optim`; `models`, `data`, `augment`; `methods`; `train`; `study`, `testing`. A room
imports only from lower floors. Importing `marginlab` imports none of them.

Letters for shapes, everywhere: B rows of a batch, C classes, D features, K sub-centers, N images, V
views of an image, P pixels.
"""

__version__ = "0.3.0"
