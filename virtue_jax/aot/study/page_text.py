"""What `docs/scaling.md` says whatever the figures are."""

CAPTIONS = {
    "mfu": "predicted MFU",
    "time": "seconds of a step by term",
    "memory": "HBM of a chip",
    "network": "share of the networks in a step",
    "pace": "pairs a second",
    "efficiency": "scaling efficiency",
    "cost": "cost of a million pairs",
}
# (kind, x) of a study -> the plots that answer it; the others are linked.
SHOWN = {
    ("grid", ""): ("mfu", "time", "memory", "cost"),
    ("grid", "chips"): ("mfu", "time", "memory", "cost"),
    ("grid", "batch"): ("memory", "mfu", "pace"),
    ("weak", "chips"): ("efficiency", "mfu", "network", "cost"),
    ("strong", "chips"): ("efficiency", "pace", "network", "cost"),
}
HEAD = """# Scaling, predicted

Written by `virtue scale --page`; don't edit it. `make scaling` compiles what has changed and writes it again,
`make scaling-page` does so from the reports in [{folder}/reports]({folder}/reports). Every figure is in
[{folder}/points.csv]({folder}/points.csv).

**These are predictions, not measurements.** Each point is the very step that `virtue train` runs, compiled by libtpu
for chips that are not there. {made}. {prices}

How to read it:

* *Prediction*: two bounds. The **roofline** adds up what the compiled program must at least take: matrix products and
  attention at the chip's peak, memory traffic where that is slower, and of the networks what is not overlapped. The
  **cycles** are the compiler's own estimates of its operations, times the trips of their loops; for attention kernels,
  of which it estimates nothing, an assumed share of the peak. What is assumed: `virtue_jax/aot/roofline.py`.
* *Effort* is the compiler's. Low takes a fifth of the time and gives the same arithmetic and collectives and, to a
  percent, the same peak of memory. Points of low effort have no cycles, and their roofline is pessimistic: less is
  fused, so memory takes longer, and their MFU is a lower bound of the full effort's. They are compared with each other,
  never with points of full effort.
* *MFU* counts useful work only: frozen towers once, the language model's linear layers twice (forward, and backward to
  their inputs), attention three times; real tokens and patches; nothing that is computed again.
* *HBM* is the largest peak of a step's compiled stages, against what the compiler says the chip has.
* *Network* is the share of the roofline's seconds that is not overlapped with arithmetic.
* *Efficiency* is pairs a second and chip, over those of the smallest pod of the same model, chip and effort that fits:
  weak scaling where every chip keeps its pairs, strong scaling where the batch stays.
* *Mesh* is data x fsdp x tensor. *Batch* is pairs a step over all chips; a query stands against that many targets.
  `large` is the run files' variant for large batches; its row groups scale with the batch.
* *Calibrated* figures, where there are any, multiply the roofline's terms by factors fitted to measured steps
  (`virtue scale --calibrate`), for points of full effort on the kinds of chip that were measured."""
SENT = """## What is sent in a step?

The collectives of the compiled program with their loops' trips, as bytes that one chip moves in a step; the largest pod
of every model and mesh. ms: at the network's full speed. "Overlapped": the compiler made it asynchronous, so that
arithmetic can hide it, and the roofline counts no time for it."""
