# From images to an encoder, from labels to redshifts, from encoders to vectors.


rule pretrain:
    input:
        dataset="results/dataset.json",
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        code=sources("pretrain"),
    output:
        encoder="results/pretrain/{method}/encoder.pt",
        history="results/pretrain/{method}/history.csv",
    log:
        "logs/pretrain/{method}.log",
    benchmark:
        "logs/pretrain/{method}.tsv"
    conda:
        "../../envs/learning.yaml"
    threads: lambda wildcards: cores(wildcards.method, "pretrain")
    resources:
        mem_mb=growing(TRAINING_MB),
        # a killed one goes on from its last checkpoint
        runtime=2880,
        nodes=1,
        ranks=1,
        running=TRAINING,
    params:
        encoder=lambda wildcards: flags(own(config, wildcards.method, "encoder")),
        options=lambda wildcards: flags(
            own(config, wildcards.method, "pretrain"), leave_out=["method"]
        ),
    shell:
        "python -m pipeline.pretrain --dataset {input.dataset:q} --method {wildcards.method}"
        " {params.encoder} {params.options} {resources.running}"
        " --nodes {resources.nodes} --ranks {resources.ranks}"
        " --output results/pretrain/{wildcards.method} 2>&1 | tee {log}"


rule train:
    input:
        unpack(start_encoder),
        dataset="results/dataset.json",
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        code=sources("train"),
    output:
        expand(
            "results/train/photoz/{{start}}/{fraction}-{{seed}}/{file}",
            fraction=FRACTIONS,
            file=["model.pt", "predictions.parquet", "history.csv"],
        ),
    log:
        "logs/train/photoz/{start}-{seed}.log",
    benchmark:
        "logs/train/photoz/{start}-{seed}.tsv"
    conda:
        "../../envs/learning.yaml"
    threads: lambda wildcards: cores(wildcards.start, "train")
    resources:
        mem_mb=growing(TRAINING_MB),
        # a killed one goes on from its last checkpoint
        runtime=2880,
        nodes=1,
        ranks=1,
        running=TRAINING,
    params:
        start=start_flags,
        options=lambda wildcards: training_flags(
            own(config, wildcards.start, "train"), wildcards.start
        ),
    shell:
        "python -m pipeline.train --task photoz --dataset {input.dataset:q}"
        " {params.start} {params.options} {resources.running} --seed {wildcards.seed}"
        " --nodes {resources.nodes} --ranks {resources.ranks}"
        " --output results/train/photoz/{wildcards.start} 2>&1 | tee {log}"


rule train_morphology:
    input:
        unpack(type_vectors),
        dataset="results/dataset.json",
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        catalog="results/catalog.parquet",
        code=sources("train"),
    output:
        "results/train/morphology/{start}/predictions-{seed}.parquet",
    log:
        "logs/train/morphology/{start}-{seed}.log",
    benchmark:
        "logs/train/morphology/{start}-{seed}.tsv"
    conda:
        "../../envs/learning.yaml"
    threads: lambda wildcards: cores(wildcards.start, "morphology")
    resources:
        # all vectors lie in memory: pooled, 14 GB for 1.7 million of 2048
        mem_mb=lambda wildcards, attempt: attempt
        * (20000 if type_vectors(wildcards) else 8000),
        runtime=growing(1440),
        nodes=1,
        ranks=1,
        running=TRAINING,
    params:
        start=type_input,
        options=lambda wildcards: type_flags(
            own(config, wildcards.start, "morphology"), wildcards.start
        ),
    shell:
        "python -m pipeline.train --task morphology --dataset {input.dataset:q}"
        " --catalog {input.catalog:q} {params.start} {params.options} {resources.running}"
        " --nodes {resources.nodes} --ranks {resources.ranks}"
        " --seed {wildcards.seed} --output results/train/morphology/{wildcards.start}"
        " 2>&1 | tee {log}"


rule embed:
    input:
        dataset="results/dataset.json",
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        encoder="results/pretrain/{method}/encoder.pt",
        code=sources("embed"),
    output:
        "results/embed/{method}.h5",
    log:
        "logs/embed/{method}.log",
    conda:
        "../../envs/learning.yaml"
    threads: lambda wildcards: own(config, wildcards.method, "embed")["threads"]
    resources:
        mem_mb=growing(4000),
        runtime=growing(720),
        running=APPLYING,
    params:
        options=lambda wildcards: flags(own(config, wildcards.method, "embed")),
    shell:
        "python -m pipeline.embed --dataset {input.dataset:q} --encoder {input.encoder:q}"
        " {params.options} {resources.running} --output {output:q} 2>&1 | tee {log}"


rule photoz:
    input:
        dataset="results/dataset.json",
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        models=models_of(config["photoz"]["start"], config["photoz"]["fraction"]),
        code=sources("photoz"),
    output:
        "results/photoz/catalog.parquet",
    log:
        "logs/photoz.log",
    conda:
        "../../envs/learning.yaml"
    threads: config["photoz"]["threads"]
    resources:
        mem_mb=growing(4000),
        runtime=growing(720),
        running=APPLYING,
    params:
        options=flags(config["photoz"], leave_out=["start", "fraction"]),
    shell:
        "python -m pipeline.photoz --model {input.models:q} --dataset {input.dataset:q}"
        " {params.options} {resources.running} --output {output:q} 2>&1 | tee {log}"


rule photoz_test:
    input:
        dataset="results/dataset.json",
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        models=lambda wildcards: models_of(wildcards.start, MOST),
        code=sources("photoz"),
    output:
        "results/photoz/test-{start}.parquet",
    log:
        "logs/photoz/test-{start}.log",
    conda:
        "../../envs/learning.yaml"
    threads: config["photoz"]["threads"]
    resources:
        mem_mb=growing(4000),
        runtime=growing(720),
        running=APPLYING,
    params:
        # turns are those of the models, as of their own predictions
        options=flags(config["photoz"], leave_out=["start", "fraction", "turns"]),
    shell:
        "python -m pipeline.photoz --model {input.models:q} --dataset {input.dataset:q}"
        " --split test {params.options} {resources.running} --output {output:q} 2>&1 | tee {log}"
