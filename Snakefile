# ugriz: SDSS galaxy images from the survey's own archives. The whole run on one screen.
#
#   snakemake --cores all                                        the embedded simulated survey
#   snakemake --cores all --configfile surveys/real-fields.yaml  another survey
#   snakemake --cores all export                                 the release files as well


configfile: f"{workflow.basedir}/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/catalog.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/learning.smk"
include: "workflow/rules/evaluation.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        "results/dataset.json",
        expand("results/pictures/{picture}.png", picture=PICTURES),
        [PRODUCTS[goal] for goal in config["goals"]],


onerror:
    sys.stderr.writelines(f"{line}\n" for line in failures.lines(log))
