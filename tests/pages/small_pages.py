"""The pages of the studies learning_rate and partial_fc, from their tables."""

import json

from page import ROOT, Page, near, table, value

RATES = ("0.03", "0.06", "0.12", "0.25", "0.5")


def learning_rate_errors(name: str) -> list[str]:
    of = table("studies/learning_rate/measured/default.csv")
    return [
        near(
            value(
                of,
                optimizer=f"SGD(lr={rate})",
                epoch=16,
                space="backbone",
                quantity=f"{name}_error",
            )
        )
        for rate in RATES
    ]


def learning_rate() -> Page:
    page = Page("studies/learning_rate/README.md")
    page.says(f"| learning rate | {' | '.join(RATES)} |")
    for name in ("kNN", "linear"):
        page.says(f"| {name} error | {' | '.join(learning_rate_errors(name.lower()))} |")
    least = min(zip(learning_rate_errors("knn"), RATES, strict=True))[1]
    page.says(f"{least} was taken.")
    page.given(
        "settings, in the head of measured/default.csv",
        "(5 minutes on 2 cores, SimCLR at T = 0.5,",
        "5,000 images of CIFAR-10, stored as JPEG of quality 90, 16 epochs at batch 128, one seed)",
        "on the 10,000 test images",
    )
    page.given("the smallest detectable difference: studies/README.md", "moves, .02 to .03")
    return page


RUNS = {
    ("omniglot", "1", 1): "omniglot",
    ("omniglot", "1", 2): "omniglot-two-processes",
    ("omniglot-r01", "0.1", 1): "omniglot-r01",
    ("omniglot-r01", "0.1", 2): "omniglot-r01-two-processes",
    ("default", "1", 1): "default",
    ("default", "0.1", 1): "default",
}


def partial_fc() -> Page:
    page = Page("studies/partial_fc/README.md")
    for (preset, rate, processes), file in RUNS.items():
        of = table(f"studies/partial_fc/measured/{file}.csv")
        last = max(int(r["epoch"]) for r in of)

        def number(columns, column="value", of=of, rate=rate, last=last):
            return value(of, column, rate=rate, epoch=last, **columns)

        shown = [
            f"{near(number(one))} ({near(number(one, 'low'))} to {near(number(one, 'high'))})"
            for one in (
                {"space": "projector", "quantity": "verification_accuracy"},
                {"space": "projector", "quantity": "tar_at_far", "at": 0.01},
                {"space": "projector", "quantity": "tar_at_far", "at": 0.001},
            )
        ]
        error = near(number({"space": "projector", "quantity": "knn_error"}))
        angle = near(number({"quantity": "target_angle"}), 1)
        degrees = " degrees" if file == "omniglot" else ""
        columns = (f"`{preset}`, {rate}", str(processes), *shown, error, f"{angle}{degrees}")
        page.says(f"| {' | '.join(columns)} |")
    bare = rows_of_pixels()
    page.says(f"| bare pixels | | {bare} | | |")
    training(page)
    two_processes(page)
    page.given(
        "settings, in the heads of measured/*.csv and in the presets",
        "accuracy by ten folds of 600 pairs",
        "TAR at a FAR of 0.01 and 0.001, on 200,000 pairs of all characters (100,000 of",
        "of 200 of the classes",
        "| processes | accuracy by folds | TAR at FAR 0.01 | TAR at FAR 0.001 |",
        "| `default` | 964, upright | 1 and 0.1 | 3 minutes |",
        "| `omniglot` | 3,856: quarter turns are classes | 1 | 4 minutes |",
        "| `omniglot-r01` | the same | 0.1 | 4 minutes |",
        "ArcFace(0.3) with the straight-through gradient at s = 16,",
        "Of the 200 watched classes",
        "a step of 128 images",
        "2,892 steps",
        "With 96 of 964 classes a step, up to 64 of which",
        "Among 964 classes",
        "Among 3,856 the accuracies",
        "964 and 3,856 classes are very few",
    )
    page.given("counted: 659 characters of 20 drawings have 659 x 190 pairs", "the 125,210 genuine")
    page.given(
        "published, in published.csv",
        "on WebFace12M 94.69 % of genuine pairs are accepted at a FAR of 1e-6 with all classes, "
        "94.49 % with a tenth",
        "on MS1MV2 86.63 % against 76.76 % at 1e-6",
    )
    page.given(
        "trials by hand that no file keeps, said as such on the page",
        "took 0.15 of the speed of one",
        "a matrix product of 1,024 x 1,024 ran 53 times a second alone, and 28 times on each",
        "ArcFace(0.5) with its exact gradient at s = 32 left this network at 87 degrees",
    )
    return page


def rows_of_pixels() -> str:
    of = table("studies/partial_fc/measured/omniglot.csv")

    def accuracy(column):
        return near(value(of, column, space="pixels", quantity="verification_accuracy"))

    fars = " | ".join(
        near(value(of, space="pixels", quantity="tar_at_far", at=far)) for far in (0.01, 0.001)
    )
    return f"{accuracy('value')} ({accuracy('low')} to {accuracy('high')}) | {fars}"


def training(page: Page) -> None:
    def of(file, quantity, epoch, at=""):
        rows = table(f"studies/partial_fc/measured/{file}.csv")
        return value(rows, space="projector", quantity=quantity, at=at, epoch=epoch)

    files = ("omniglot", "omniglot-r01")
    ended = {"omniglot": 6, "omniglot-two-processes": 6, "omniglot-r01": 6}
    ended["omniglot-r01-two-processes"] = 6
    largest = [of(file, "divergence_max", last) for file, last in ended.items()]
    first = of("omniglot", "divergence_max", 0)
    mean = of("omniglot", "divergence_mean", 0)
    end = max(abs(of(file, "divergence_mean", 6)) for file in files)
    page.says(
        f"the largest product of two centers falls from {near(first)} to {near(min(largest), 2)} "
        f"to {near(max(largest), 2)} and the mean one from {near(mean, 2)} to {near(end, 2)};"
    )
    aligned = [of(file, "alignment", 6) for file in files]
    before = of("omniglot", "alignment", 0)
    page.says(
        f"alignment, {near(before, 2)} before training, is {near(aligned[0], 2)} (rate 1) and "
        f"{near(aligned[1], 2)} after it"
    )
    lost = []
    for far in (0.01, 0.001):
        one, other = (of(file, "tar_at_far", 6, far) for file in files)
        lost.append(round(100 * (one - other)))
    page.says(f"is {min(lost)} to {max(lost)} points")


BOTH = ("omniglot", "omniglot-r01")
STEPS = {(1, 1): "a step of 128 images: 1 process, 1 thread", (1, 2): "1 process, 2 threads",
         (2, 1): "2 processes, 1 thread each"}  # fmt: skip


def said(preset: str, start: str) -> str:
    """The line that was said of a preset."""
    lines = json.loads((ROOT / "tests/train/measured/ranks_agree.json").read_text())["said"]
    (line,) = [line for line in lines if line.startswith(f"{preset}{start}")]
    return line


def word(preset: str, start: str, after: str) -> str:
    return said(preset, start).partition(after)[2].split()[0].strip(";")


def timed(preset: str, processes: int, threads: int, after: str) -> str:
    return word(preset, f": {processes} process(es), {threads} thread(s) each", after)


def process_shares() -> list[float]:
    """The images a second of two processes, in those of one, of both presets."""

    def rate(preset, processes):
        images = timed(preset, processes, 1, "images, ").removesuffix("images/s")
        return float(images.replace(",", ""))

    return [rate(preset, 2) / rate(preset, 1) for preset in BOTH]


def two_processes(page: Page) -> None:
    def short(text):
        mantissa, _, power = text.partition("e")
        return f"{mantissa}e{int(power)}"

    for start, row, allowed in (
        (", seed 0, float32", "largest difference of the first 20 losses, float32", "1e-4"),
        (", seed 0, float64", "of the first 200 losses, float64", "1e-8"),
    ):
        least = [short(word(preset, start, "at most ")) for preset in BOTH]
        page.says(f"| {row} | {least[0]} | {least[1]} | {allowed} |")
    for (processes, threads), row in STEPS.items():
        steps = [timed(preset, processes, threads, "each: ") for preset in BOTH]
        page.says_rows([row, *(f"{step} s" for step in steps), ""])
    shares = process_shares()
    rates = [near(share, 2) for share in shares]
    page.says(f"They make {rates[0]} (rate 1) and {rates[1]} (rate 0.1) of the images")
    sent = [said(preset, ": 102") for preset in BOTH]
    head = sent[0].partition("head's ")[2].split()[0]
    ddp = sent[0].partition("and ")[2].split()[0]
    own = [line.split()[1] for line in sent]
    row = "| bytes that a rank gives into collectives of a step"
    page.says(f"{row} | {own[0]}, and {ddp} of gradients by DDP | {own[1]}, and {ddp} | |")
    page.says(f"Of these bytes {head} are the head's")
    step = 1000 * float(timed("omniglot", 1, 1, "each: "))
    page.says(f"a step of {step:.0f} milliseconds")
