# From a shard's galaxies to its stamps, and from all shards to a checked set.


rule plan:
    input:
        catalog="results/catalog.parquet",
        code=sources("frames"),
    output:
        "results/plan.json",
    log:
        "logs/plan.log",
    conda:
        "../../envs/ugriz.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        stamp=STAMP,
        planning=PLANNING,
        disk=DISK,
    shell:
        "python -m pipeline.frames plan --galaxies {input.catalog:q} {params.stamp}"
        " {params.planning} {params.disk} --output {output:q} 2>&1 | tee {log}"


rule measured:
    input:
        catalog="results/catalog.parquet",
        dataset="results/dataset.json",
        code=sources("frames"),
    output:
        "results/measured.json",
    log:
        "logs/measured.log",
    conda:
        "../../envs/ugriz.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        stamp=STAMP,
        planning=PLANNING,
    shell:
        "python -m pipeline.frames plan --galaxies {input.catalog:q} {params.stamp}"
        " {params.planning} --measured results/frames/*.provenance.json"
        " results/cutouts/*.provenance.json --output {output:q} 2>&1 | tee {log}"


rule frames:
    input:
        catalog="results/catalog.parquet",
        archive=archive_below(ROOTS),
        plan=ancient(plan_first),
        earlier=ancient(earlier_stamps),
        code=sources("frames"),
    output:
        temp(directory("results/frames/{shard}")),
    log:
        "logs/frames/{shard}.log",
    localrule: AT_HOME and FETCHES
    conda:
        "../../envs/ugriz.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=growing(240),
        sdss=int(FETCHES),
        # no params: how files are fetched may change in the middle of a run and reruns nothing
        fetching=fetching,
    params:
        root=ROOTS[0],
        stamp=STAMP,
    shell:
        "python -m pipeline.frames fetch --galaxies {input.catalog:q} --shard {wildcards.shard}"
        " {resources.fetching} {params.stamp} --output {output:q} 2>&1 | tee {log}"


rule cutouts:
    input:
        catalog="results/catalog.parquet",
        frames="results/frames/{shard}",
        code=sources("cutouts"),
    output:
        "results/cutouts/{shard}.h5",
    log:
        "logs/cutouts/{shard}.log",
    benchmark:
        "logs/cutouts/{shard}.tsv"
    conda:
        "../../envs/ugriz.yaml"
    threads: 2
    resources:
        mem_mb=growing(1000, each=250),
        runtime=growing(240),
        # no params: whose workers cut changes nothing in what comes out
        cutting=CUTTING,
    params:
        options=flags(config["cutouts"], leave_out=["scheduler"]),
    shell:
        "python -m pipeline.cutouts --galaxies {input.catalog:q} --shard {wildcards.shard}"
        " --archive {input.frames:q} --fetched {params.options} {resources.cutting} --workers {threads}"
        " --output {output:q} 2>&1 | tee {log}"


rule dataset:
    input:
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        catalog="results/catalog.parquet",
        funnel="results/catalog.json",
        code=sources("dataset"),
    output:
        report(
            "results/dataset.json",
            caption="../report/dataset.rst",
            category="Data set",
        ),
    log:
        "logs/dataset.log",
    conda:
        "../../envs/ugriz.yaml"
    threads: 4
    resources:
        mem_mb=growing(1000, each=250),
        runtime=growing(240),
    params:
        options=flags(config["dataset"]),
        survey=config["survey"],
    shell:
        "python -m pipeline.dataset --shards {input.shards:q} --catalog {input.catalog:q}"
        " --funnel {input.funnel:q} {params.options} --survey {params.survey:q}"
        " --workers {threads} --output {output:q} 2>&1 | tee {log}"


rule pictures:
    input:
        unpack(fields_input),
        dataset="results/dataset.json",
        catalog="results/catalog.parquet",
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        code=sources("pictures"),
    output:
        report(
            expand("results/pictures/{picture}.png", picture=PICTURES),
            caption="../report/pictures.rst",
            category="Pictures",
        ),
    log:
        "logs/pictures.log",
    conda:
        "../../envs/ugriz.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        fields=lambda wildcards, input: named(input, ["fields"]),
    shell:
        "python -m pipeline.pictures --dataset {input.dataset:q} --catalog {input.catalog:q}"
        " {params.fields} --output results/pictures 2>&1 | tee {log}"


rule export:
    input:
        dataset="results/dataset.json",
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        code=sources("export"),
    output:
        expand("results/export/{split}.h5", split=SPLITS),
        "results/export/README.md",
        "results/export/SHA256SUMS",
    log:
        "logs/export.log",
    conda:
        "../../envs/ugriz.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=growing(480),
    params:
        options=flags(config["export"]),
    shell:
        "python -m pipeline.export --dataset {input.dataset:q} {params.options}"
        " --output results/export 2>&1 | tee {log}"
