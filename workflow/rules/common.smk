# What the rules share: the checked config, lists, and functions that name inputs. No rules.
import os
import sys
from shlex import quote

sys.path.insert(0, workflow.basedir)

from pipeline import failures
from pipeline.run import UserError
from pipeline.settings import (
    FROM_SCRATCH,
    NO_NETS,
    checked,
    flags,
    own,
    sources,
    training_flags,
    type_flags,
)

# the package comes from here and, without --sdm, python is the one that runs Snakemake
PATHS = f"export PYTHONPATH={quote(workflow.basedir)}; "
if not workflow.deployment_settings.deployment_method:
    PATHS += f"export PATH={quote(os.path.dirname(sys.executable))}:$PATH; "
shell.prefix(f"set -euo pipefail; {PATHS}")

try:
    config = checked(config)
except UserError as error:
    sys.exit(f"error: {error}")

SHARDS = [f"{number:04d}" for number in range(config["catalog"]["shards"])]
SPLITS = ["train", "valid", "test", "unlabelled"]
PICTURES = ["contact-sheet", "sky-map", "funnel", "magnitudes"]
SKY_SPLIT = config["catalog"]["split"] == "sky"
OWN_TABLE = config["query"]["engine"] == "table"
ASKS = config["query"]["engine"] in ("casjobs", "skyserver")
ROOTS = (
    [config["frames"]["root"]]
    if isinstance(config["frames"]["root"], str)
    else config["frames"]["root"]
)
FETCHES = any(root.startswith("http") for root in ROOTS)
TABLES = ["galaxies"] if OWN_TABLE else ["labelled", "unlabelled", "morphology"]
METHOD = config["pretrain"]["method"]
STARTS = config["train"]["starts"]
FRACTIONS = [f"{fraction:g}" for fraction in config["train"]["fractions"]]
SEEDS = config["train"]["seeds"]
MOST = max(config["train"]["fractions"])
NO_VECTORS = ["pca", "supervised"]
MORPHOLOGY_STARTS = config["morphology"]["starts"]
MORPHOLOGY_SEEDS = config["morphology"]["seeds"]
VOTES = ["threshold", "debiased", "least_votes"]
VOTES = flags({key: config["morphology"].get(key) for key in VOTES})
# no params: how a training runs may change in the middle of it and reruns nothing
TRAINING = flags(config["running"])
# the set of images that a training keeps, and what it is besides
TRAINING_MB = round(4000 + 1000 * config["running"]["memory_gb"])
APPLYING = flags({key: config["running"][key] for key in ("device", "workers")})
AT_HOME = config["network"]["submit_host"]
NETWORK = flags(config["network"], leave_out=["submit_host"])
QUERYING = ""
if ASKS:
    how = ["login", "credentials", "drop_tables", "page_rows", "poll"]
    QUERYING = flags({key: config["query"].get(key) for key in how}) + " " + NETWORK
FETCHING = flags(config["frames"], leave_out=["root", "window"])
FETCHING = f"{flags({'root': ROOTS})} {FETCHING} {NETWORK}"
PLANNING = flags(
    {key: config["frames"][key] for key in ("streams", "window", "cache_gb")}
    | {"mb_per_second": config["network"].get("mb_per_second")}
)
# files of a folder are linked, and take nothing of the disk
DISK = flags({"disk_gb": config["frames"].get("disk_gb") if FETCHES else None})
CUTTING = flags({"scheduler": config["cutouts"].get("scheduler")})
STAMP = flags({key: config["cutouts"][key] for key in ("size", "fov", "mask")})
# whose vectors are made: the method's, and those that types are learnt from
EMBEDDED = [METHOD]
if "morphology" in config["goals"]:
    EMBEDDED += [
        start for start in MORPHOLOGY_STARTS if start not in (METHOD, *NO_VECTORS)
    ]
SEARCHED = ["gallery", "outliers"]
EVALUATED = ["fig2", "redshifts", "residuals", "residuals-sky", "pit"]
PRODUCTS = {
    "measured": "results/measured.json",
    "redshifts": [
        "results/evaluate/photoz/metrics.json",
        "results/photoz/catalog.parquet",
    ],
    "search": [f"results/search/{METHOD}/{figure}.png" for figure in SEARCHED],
    "morphology": ["results/evaluate/morphology/metrics.json"],
    "atlas": [f"results/atlas/{method}/atlas.html" for method in EMBEDDED],
}


wildcard_constraints:
    shard=r"\d{4}",
    method=r"\w+",
    start=r"\w+",
    seed=r"\d+",


def archive_below(roots):
    """The simulated archive as an input, if a root lies in it; others are not watched."""
    below = any(root.startswith("results/simulate/") for root in roots)
    return ["results/simulate/sas"] if below else []


def plan_first(wildcards):
    """What will be fetched is told before anything is."""
    return ["results/plan.json"] if FETCHES else []


def catalog_inputs(wildcards):
    """The catalogue's tables by the names of their flags."""
    tables = {name: f"results/query/{name}.parquet" for name in TABLES}
    return tables | fields_input(wildcards)


def fields_input(wildcards):
    """The table of fields: of the survey's database, or the user's own, or none."""
    if not OWN_TABLE:
        return {"fields": "results/query/fields.parquet"}
    own = config["query"]["fields"]
    return {"fields": own} if own else {}


def query_inputs(wildcards):
    """The SQL file, for the engines that run it; the source, where it is a file."""
    sql = {"sql": f"{workflow.basedir}/queries/{wildcards.name}.sql"}
    source = {"source": config["query"]["source"]}
    return (source if OWN_TABLE else sql) | ({} if ASKS else source)


def earlier_stamps(wildcards):
    """The shard whose stamps must be there first, so that few shards' frames lie on disk."""
    first = int(wildcards.shard) - config["frames"]["window"]
    return [f"results/cutouts/{first:04d}.h5"] if first >= 0 else []


def fetching(wildcards):
    """How frames are fetched, and whose are let go first, should a kill have left them."""
    before = int(wildcards.shard) - config["frames"]["window"]
    left = f" --let-go results/frames/{before:04d}" if before >= 0 else ""
    return FETCHING + left


def growing(amount, each=0):
    """A resource: `amount`, and `each` for every thread; as much again at every retry.

    So that a job that was over its memory or time gets more, and the others do not wait for it.
    """

    def resource(wildcards, threads, attempt):
        return attempt * (amount + each * threads)

    return resource


def cores(method, section):
    """Cores of a training: its threads, and its workers that read images."""
    return own(config, method, section)["threads"] + config["running"]["workers"]


def named(inputs, names):
    """`--labelled FILE --fields FILE ...` for those of a job's inputs that it has."""
    return " ".join(
        f"--{name} {quote(inputs[name])}" for name in names if name in inputs.keys()
    )


def start_encoder(wildcards):
    """The encoder that a training starts from, or the catalogue; none from scratch."""
    if wildcards.start in NO_NETS:
        return {"catalog": "results/catalog.parquet"}
    if wildcards.start in FROM_SCRATCH:
        return {}
    return {"encoder": f"results/pretrain/{wildcards.start}/encoder.pt"}


def start_flags(wildcards, input):
    """The encoder's file, or what a new one is made of, or the method that needs none."""
    if wildcards.start in NO_NETS:
        method = flags({"magnitudes": wildcards.start})
        return f"{method} {named(input, ['catalog'])}"
    return named(input, ["encoder"]) or flags(own(config, wildcards.start, "encoder"))


def type_vectors(wildcards):
    """The vectors that a small net learns types from; none where it is given images."""
    if wildcards.start in NO_VECTORS:
        return {}
    return {"vectors": f"results/embed/{wildcards.start}.h5"}


def type_input(wildcards, input):
    """The file of vectors, or how images are given."""
    return named(input, ["vectors"]) or flags(
        own(config, config["morphology"]["input"], "encoder")
    )


def ensemble():
    """START=FILE of the averaged PDFs of each net with its most labels: rows of the table.

    Of `photoz: start` it is the catalogue; which, of fewer labels, is a row of no START.
    """
    if len(SEEDS) == 1:
        return []
    own, catalogue = config["photoz"], "results/photoz/catalog.parquet"
    nets = [start for start in STARTS if start not in NO_NETS]
    files = {start: f"results/photoz/test-{start}.parquet" for start in nets}
    if own["fraction"] == MOST:
        files[own["start"]] = catalogue
    others = [] if own["fraction"] == MOST else [catalogue]
    return [f"{start}={file}" for start, file in files.items()] + others


def models_of(start, fraction):
    """The models whose PDFs a photo-z catalogue averages: those of all seeds."""
    return [
        f"results/train/photoz/{start}/{fraction:g}-{seed}/model.pt" for seed in SEEDS
    ]
