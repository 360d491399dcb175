# From the survey's database to one table of galaxies in shards.


rule simulate:
    input:
        code=sources("simulate"),
    output:
        database="results/simulate/survey.duckdb",
        truth="results/simulate/truth.parquet",
        archive=directory("results/simulate/sas"),
    log:
        "logs/simulate.log",
    benchmark:
        "logs/simulate.tsv"
    conda:
        "../../envs/ugriz.yaml"
    threads: 8
    resources:
        mem_mb=growing(0, each=1500),
        runtime=growing(240),
    params:
        options=flags(config["simulate"]),
    shell:
        "python -m pipeline.simulate --output results/simulate {params.options}"
        " --workers {threads} 2>&1 | tee {log}"


rule query:
    input:
        unpack(query_inputs),
        code=sources("query"),
    output:
        "results/query/{name}.parquet",
    log:
        "logs/query/{name}.log",
    localrule: AT_HOME and ASKS
    conda:
        "../../envs/ugriz.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=2880 if ASKS else 120,
        sdss=int(ASKS),
        # no params: how a service is asked may change in the middle of a run and reruns nothing
        asking=QUERYING,
    params:
        source=flags({key: config["query"][key] for key in ("engine", "source")}),
        sql=lambda wildcards, input: named(input, ["sql"]),
        rows=flags({key: config["query"][key] for key in ("stretch", "context")}),
    shell:
        "python -m pipeline.query {params.source} {params.sql} {params.rows} {resources.asking}"
        " --output {output:q} 2>&1 | tee {log}"


rule catalog:
    input:
        unpack(catalog_inputs),
        code=sources("catalog"),
    output:
        catalog="results/catalog.parquet",
        rejected="results/catalog-rejected.parquet",
        funnel="results/catalog.json",
    log:
        "logs/catalog.log",
    benchmark:
        "logs/catalog.tsv"
    conda:
        "../../envs/ugriz.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        tables=lambda wildcards, input: named(
            input, ["labelled", "unlabelled", "galaxies", "fields", "morphology"]
        ),
        options=flags(config["catalog"]),
        survey=config["survey"],
        stamp=flags({"fov": config["cutouts"]["fov"]} if SKY_SPLIT else {}),
    shell:
        "python -m pipeline.catalog {params.tables} {params.options} --survey {params.survey:q}"
        " {params.stamp} --output {output.catalog:q} --funnel {output.funnel:q}"
        " --rejected {output.rejected:q} 2>&1 | tee {log}"
