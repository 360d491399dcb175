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
    threads: config["pretrain"]["threads"]
    resources:
        mem_mb=8000,
        runtime=2880,
        running=TRAINING,
    params:
        encoder=flags(config["encoder"]),
        options=flags(config["pretrain"], leave_out=["method"]),
    shell:
        "python -m pipeline.pretrain --dataset {input.dataset:q} --method {wildcards.method}"
        " {params.encoder} {params.options} {resources.running}"
        " --output results/pretrain/{wildcards.method} 2>&1 | tee {log}"


rule train:
    input:
        unpack(start_encoder),
        dataset="results/dataset.json",
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        code=sources("train"),
    output:
        expand(
            "results/train/{{task}}/{{start}}/{fraction}-{{seed}}/{file}",
            fraction=FRACTIONS,
            file=["model.pt", "predictions.parquet", "history.csv"],
        ),
    log:
        "logs/train/{task}/{start}-{seed}.log",
    benchmark:
        "logs/train/{task}/{start}-{seed}.tsv"
    conda:
        "../../envs/learning.yaml"
    threads: config["train"]["threads"]
    resources:
        mem_mb=8000,
        runtime=2880,
        running=TRAINING,
    params:
        start=start_flags,
        options=lambda wildcards: training_flags(config["train"], wildcards.start),
    shell:
        "python -m pipeline.train --task {wildcards.task} --dataset {input.dataset:q}"
        " {params.start} {params.options} {resources.running} --seed {wildcards.seed}"
        " --output results/train/{wildcards.task}/{wildcards.start} 2>&1 | tee {log}"


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
    threads: config["embed"]["threads"]
    resources:
        mem_mb=4000,
        runtime=720,
        running=APPLYING,
    params:
        options=flags(config["embed"]),
    shell:
        "python -m pipeline.embed --dataset {input.dataset:q} --encoder {input.encoder:q}"
        " {params.options} {resources.running} --output {output:q} 2>&1 | tee {log}"


rule photoz:
    input:
        dataset="results/dataset.json",
        shards=expand("results/cutouts/{shard}.h5", shard=SHARDS),
        models=best_models,
        code=sources("photoz"),
    output:
        "results/photoz/catalog.parquet",
    log:
        "logs/photoz.log",
    conda:
        "../../envs/learning.yaml"
    threads: config["photoz"]["threads"]
    resources:
        mem_mb=4000,
        runtime=720,
        running=APPLYING,
    params:
        options=flags(config["photoz"], leave_out=["start", "fraction"]),
    shell:
        "python -m pipeline.photoz --model {input.models:q} --dataset {input.dataset:q}"
        " {params.options} {resources.running} --output {output:q} 2>&1 | tee {log}"
