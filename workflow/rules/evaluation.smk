# What came out: metrics and figures, neighbours and outliers.


rule search:
    input:
        dataset="results/dataset.json",
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        vectors="results/embed/{method}.h5",
        code=sources("search"),
    output:
        neighbours="results/search/{method}/neighbours.parquet",
        outliers="results/search/{method}/outliers.parquet",
        figures=report(
            expand("results/search/{{method}}/{figure}.png", figure=SEARCHED),
            caption="../report/search.rst",
            category="Search",
        ),
    log:
        "logs/search/{method}.log",
    conda:
        "../../envs/learning.yaml"
    threads: 2
    resources:
        # pooled vectors lie in memory whole: 14 GB for 1.7 million of 2048
        mem_mb=growing(20000 if config["search"].get("vectors") == "pooled" else 8000),
        runtime=growing(720),
    params:
        options=flags(config["search"]),
    shell:
        "python -m pipeline.search --embed {input.vectors:q} --dataset {input.dataset:q}"
        " {params.options} --output results/search/{wildcards.method} 2>&1 | tee {log}"


rule atlas:
    input:
        vectors="results/embed/{method}.h5",
        dataset="results/dataset.json",
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        catalog="results/catalog.parquet",
        code=sources("atlas"),
    output:
        table="results/atlas/{method}/atlas.parquet",
        figure=report(
            "results/atlas/{method}/atlas.png",
            caption="../report/atlas.rst",
            category="Atlas",
        ),
        page=report(
            "results/atlas/{method}/atlas.html",
            caption="../report/atlas.rst",
            category="Atlas",
        ),
    log:
        "logs/atlas/{method}.log",
    conda:
        "../../envs/learning.yaml"
    resources:
        # as for search
        mem_mb=growing(20000 if config["atlas"].get("vectors") == "pooled" else 8000),
        runtime=growing(720),
    params:
        options=flags(config["atlas"]),
        votes=VOTES,
    shell:
        "python -m pipeline.atlas --embed {input.vectors:q} --dataset {input.dataset:q}"
        " --catalog {input.catalog:q} {params.options} {params.votes}"
        " --output results/atlas/{wildcards.method} 2>&1 | tee {log}"


rule evaluate:
    input:
        predictions=expand(
            "results/train/photoz/{start}/{fraction}-{seed}/predictions.parquet",
            start=STARTS,
            fraction=FRACTIONS,
            seed=SEEDS,
        ),
        catalog="results/catalog.parquet",
        photoz=[word.split("=")[-1] for word in ensemble()],
        code=sources("evaluate"),
    output:
        metrics="results/evaluate/photoz/metrics.json",
        scores="results/evaluate/photoz/scores.csv",
        table=report(
            "results/evaluate/photoz/table.md",
            caption="../report/evaluate.rst",
            category="Redshifts",
        ),
        figures=report(
            expand("results/evaluate/photoz/{figure}.png", figure=EVALUATED),
            caption="../report/evaluate.rst",
            category="Redshifts",
        ),
    log:
        "logs/evaluate/photoz.log",
    conda:
        "../../envs/learning.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        photoz=flags({"photoz": ensemble() or None}),
        options=flags(config["evaluate"]),
    shell:
        "python -m pipeline.evaluate --predictions {input.predictions:q}"
        " --catalog {input.catalog:q} {params.photoz} {params.options}"
        " --output results/evaluate/photoz 2>&1 | tee {log}"


rule evaluate_morphology:
    input:
        predictions=expand(
            "results/train/morphology/{start}/predictions-{seed}.parquet",
            start=MORPHOLOGY_STARTS,
            seed=MORPHOLOGY_SEEDS,
        ),
        code=sources("evaluate"),
    output:
        metrics="results/evaluate/morphology/metrics.json",
        scores="results/evaluate/morphology/scores.csv",
        table=report(
            "results/evaluate/morphology/table.md",
            caption="../report/morphology.rst",
            category="Morphology",
        ),
        figures=report(
            expand(
                "results/evaluate/morphology/{figure}.png", figure=["counts", "roc"]
            ),
            caption="../report/morphology.rst",
            category="Morphology",
        ),
    log:
        "logs/evaluate/morphology.log",
    conda:
        "../../envs/learning.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        options=flags(config["evaluate"]),
    shell:
        "python -m pipeline.evaluate --task morphology"
        " --predictions {input.predictions:q} {params.options}"
        " --output results/evaluate/morphology 2>&1 | tee {log}"
