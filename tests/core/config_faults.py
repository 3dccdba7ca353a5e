"""Wrong configurations: the field, its value, and what the message must say after the field's name."""

from __future__ import annotations

WRONG: list[tuple[str, object, str]] = [
    # Unknown keys
    ("storage_pth", "x", "unknown key; did you mean 'storage_path'?"),
    ("sisa.num_shard", 5, "unknown key; did you mean 'num_shards'?"),
    ("sisa.sed", 5, "unknown key; did you mean 'seed'?"),
    ("recipe.clas", "a.B", "unknown key; did you mean 'class'?"),
    ("recipe.klass", "a.B", "unknown key; did you mean 'class'?"),
    ("data.colums", {}, "unknown key; did you mean 'columns'?"),
    ("arithmetic.thread", 1, "unknown key; did you mean 'threads'?"),
    ("resources.gpu_per_shard", 1, "unknown key; did you mean 'gpus_per_shard'?"),
    ("num_shards", 5, "unknown key; did you mean 'sisa.num_shards'?"),
    ("class", "a.B", "unknown key; did you mean 'recipe.class'?"),
    ("recipe.zzz", 5, "unknown key; known keys are args, class"),
    # Sections
    (
        "sisa",
        5,
        "must be a mapping with the keys epochs, num_shards, num_slices, order_buckets, schedule,"
        " seed, strata, warm_start, not 5",
    ),
    ("recipe", "a.B", "must be a mapping with the keys args, class, not 'a.B'"),
    (
        "data",
        None,
        "must be a mapping with the keys columns, record_id, strata_table, stratum, subject_id, test, train, not None",
    ),
    # Names and paths
    (
        "name",
        "my run",
        "must be at most 128 letters, digits, '.', '_' and '-', the first a letter or digit, not "
        "'my run'; rename the run",
    ),
    (
        "name",
        "../up",
        "must be at most 128 letters, digits, '.', '_' and '-', the first a letter or digit, not "
        "'../up'; rename the run",
    ),
    ("name", "", "must not be empty, but is ''"),
    ("name", 2024, "must be a string, but is 2024; put it in quotes"),
    ("name", True, "must be a string, but is True; put it in quotes"),
    ("storage_path", "", "must not be empty, but is ''"),
    ("storage_path", " ", "must not be empty, but is ' '"),
    ("storage_path", "s3://", "must name a bucket, such as s3://my-runs, not 's3://'"),
    ("storage_path", ["a"], "must be a string, but is ['a']"),
    ("storage_path", "a\ud800", "must be valid Unicode, but is 'a\\ud800'"),
    ("data.train", "", "must not be empty, but is ''"),
    ("data.test", 5, "must be a string, but is 5; put it in quotes"),
    ("data.record_id", 5, "must be a string, but is 5; put it in quotes"),
    ("data.record_id", "", "must not be empty, but is ''"),
    ("data.subject_id", 5, "must be a string, but is 5; put it in quotes"),
    # Columns
    (
        "data.columns",
        {},
        "must map at least one role to a column (or to a list of columns), for example {features:"
        " pixels, label: label}, not {}",
    ),
    (
        "data.columns",
        ["pixels"],
        "must map at least one role to a column (or to a list of columns), for example {features:"
        " pixels, label: label}, not ['pixels']",
    ),
    ("data.columns", {"record_id": "id"}, "role 'record_id' is taken by the key of that name; rename it"),
    ("data.columns", {"a b": "x"}, "role 'a b' must be a name of letters, digits and '_'; rename it"),
    ("data.columns", {1: "x"}, "role 1 must be a name of letters, digits and '_'; rename it"),
    (
        "data.columns",
        {"features": 5},
        "the column of role 'features' must be a string, but is 5; put it in quotes",
    ),
    ("data.columns", {"features": ["a", ""]}, "the column of role 'features' must not be empty, but is ''"),
    ("data.columns", {"features": []}, "the list of columns of role 'features' is empty; name at least one"),
    # Recipe
    ("recipe.class", "MLP", "must be package.module.Class or path/to/file.py:Class, not 'MLP'"),
    ("recipe.class", "nets:Net", "must be package.module.Class or path/to/file.py:Class, not 'nets:Net'"),
    ("recipe.class", "nets.py:", "must be package.module.Class or path/to/file.py:Class, not 'nets.py:'"),
    ("recipe.class", "a..B", "must be package.module.Class or path/to/file.py:Class, not 'a..B'"),
    ("recipe.args", [1], "must map names of arguments to values, such as {lr: 0.001}, not [1]"),
    ("recipe.args", {"lr": float("nan")}, "lr: must be finite, not nan"),
    (
        "recipe.args",
        {"a": {"b": [0, {1: 2}]}},
        "a.b[1]: key 1 must be a string of valid Unicode; put it in quotes",
    ),
    ("recipe.args", {"\ud800": 1}, "key '\\ud800' must be a string of valid Unicode; put it in quotes"),
    (
        "recipe.args",
        {"a\n": {1}},
        "'a\\n': must be a number, string, truth value, null, list or mapping, not a set ({1}); "
        "write it as one of these",
    ),
    ("recipe.class_path", "a.B", "unknown key; did you mean 'class'?"),
    (
        "recipe.args",
        {"a": {1, 2}},
        "a: must be a number, string, truth value, null, list or mapping, not a set ({1, 2}); "
        "write it as one of these",
    ),
    # Sizes
    ("sisa.num_shards", 0, "must be a whole number from 1 to 100000, not 0"),
    ("sisa.num_shards", -3, "must be a whole number from 1 to 100000, not -3"),
    ("sisa.num_shards", 1.5, "must be a whole number from 1 to 100000, not 1.5"),
    ("sisa.num_shards", True, "must be a whole number from 1 to 100000, not True"),
    ("sisa.num_shards", "20", "must be a whole number from 1 to 100000, not '20'; remove the quotes"),
    ("sisa.num_shards", None, "must be a whole number from 1 to 100000, not None"),
    ("sisa.num_slices", 100000, "must be a whole number from 1 to 10000, not 100000"),
    ("sisa.seed", -1, "must be a whole number from 0 to 9223372036854775807, not -1"),
    ("sisa.seed", 10**5000, "must be a whole number from 0 to 9223372036854775807, not a int"),
    ("sisa.order_buckets", 0, "must be a whole number from 1 to 65536, not 0"),
    # Epochs and schedule
    ("sisa.epochs", 0, "must be positive, not 0"),
    ("sisa.epochs", "-1/2", "must be positive, not '-1/2'"),
    ("sisa.epochs", "many", "must be a finite number or a fraction such as 7/2, not 'many'"),
    ("sisa.epochs", "1/0", "must be a finite number or a fraction such as 7/2, not '1/0'"),
    ("sisa.epochs", float("inf"), "must be a finite number or a fraction such as 7/2, not inf"),
    ("sisa.epochs", True, "must be a finite number or a fraction such as 7/2, not True"),
    ("sisa.epochs", [1], "must be a finite number or a fraction such as 7/2, not [1]"),
    ("sisa.epochs", "1e999999999", "must be a finite number or a fraction such as 7/2, not '1e999999999'"),
    (
        "sisa.schedule",
        "hamonic",
        "must be equal, equal_cost, harmonic or sweep, a mapping such as {sweep: 1/20, power: 3}, or a list of one "
        "weight a stage, not 'hamonic'; did you mean 'harmonic'?",
    ),
    (
        "sisa.schedule",
        5,
        "must be equal, equal_cost, harmonic or sweep, a mapping such as {sweep: 1/20, power: 3}, or a list of one "
        "weight a stage, not 5",
    ),
    (
        "sisa.schedule",
        {"sweep": 1},
        "its sweep must be above 0 and below 1, a share of the budget, not 1; 1/20 is a good start",
    ),
    (
        "sisa.schedule",
        {"sweep": "all"},
        "its sweep must be a finite number or a fraction such as 7/2, not 'all'",
    ),
    ("sisa.schedule", {"power": 1.5}, "its power must be a whole number from 0 to 4, not 1.5"),
    (
        "sisa.schedule",
        {"swep": "1/5"},
        "has the unknown key 'swep'; did you mean 'sweep'?; its keys are sweep, the share of the budget that the last "
        "stage sweeps over all slices with, and power, of the stages before it",
    ),
    ("sisa.warm_start.shrink", 0, "must be above 0 and at most 1, not 0"),
    ("sisa.warm_start.perturb", 1.5, "must be from 0 to 1, not 1.5"),
    ("sisa.warm_start", True, "must be a mapping with the keys perturb, shrink, not True"),
    (
        "sisa.schedule",
        [1, 2],
        "must have one weight a stage: it has 2, but num_slices is 4; give 4 weights, or set num_slices to 2",
    ),
    (
        "sisa.schedule",
        [1, 0, 1, 1],
        "weight 2 must be positive, not 0; a stage without weight would never train",
    ),
    (
        "sisa.schedule",
        [1, 1, "x", 1],
        "weight 3 must be a finite number or a fraction such as 7/2, not 'x'; a stage without "
        "weight would never train",
    ),
    # Choices
    ("arithmetic.device", "gpu", "must be auto, cpu or cuda, not 'gpu'; did you mean 'cpu'?"),
    ("arithmetic.precision", 16, "must be fp32, bf16 or fp16, not 16; did you mean 'fp16'?"),
    ("aggregation", "average", "must be auto, majority, mean, median or size_weighted, not 'average'"),
    (
        "resources.loader",
        "stream",
        "must be auto, resident or streaming, not 'stream'; did you mean 'streaming'?",
    ),
    # Resources
    ("resources.gpus_per_shard", 1.5, "must be auto, 0, a fraction below 1, or a whole number, not 1.5"),
    (
        "resources.gpus_per_shard",
        float("inf"),
        "must be auto, 0, a fraction below 1, or a whole number, not inf",
    ),
    (
        "resources.gpus_per_shard",
        float("nan"),
        "must be auto, 0, a fraction below 1, or a whole number, not nan",
    ),
    (
        "resources.gpus_per_shard",
        "many",
        "must be auto, 0, a fraction below 1, or a whole number, not 'many'",
    ),
    ("resources.gpus_per_shard", False, "must be auto, 0, a fraction below 1, or a whole number, not False"),
    ("resources.cpus_per_shard", 0, "must be a positive, finite number, not 0"),
    ("resources.cpus_per_shard", True, "must be a positive, finite number, not True"),
    ("resources.max_slots", 0, "must be auto or a whole number from 1 to 100000, not 0"),
    ("resources.max_slots", "all", "must be auto or a whole number from 1 to 100000, not 'all'"),
    ("resources.wait_for_nodes_s", -1, "must be zero or a positive, finite number, not -1"),
    ("resources.strategy", "spred", "must be pack or spread, not 'spred'; did you mean 'spread'?"),
    ("resources.accelerator_type", 100, "must be a string, but is 100; put it in quotes"),
    (
        "resources.labels",
        ["spot"],
        "must map labels of nodes to values, such as {ray.io/market-type: on-demand}, not ['spot']",
    ),
    (
        "resources.labels",
        {"a b": "c"},
        "label 'a b' must be a name of letters, digits, '-', '_' and '.', 63 at most, or one behind a domain and "
        "'/'; rename it",
    ),
    (
        "resources.labels",
        {"zone": 5},
        "label 'zone' must have a value such as a, '!a', 'in(a, b)' or '!in(a, b)', not 5; put it in quotes",
    ),
    (
        "resources.labels",
        {"zone": "in()"},
        "label 'zone' must have a value such as a, '!a', 'in(a, b)' or '!in(a, b)', not 'in()'",
    ),
    (
        "resources",
        {"accelerator_type": "A100", "gpus_per_shard": 0},
        "accelerator_type is A100, but gpus_per_shard is 0; ask for a GPU, or pin shards without one by labels",
    ),
    (
        "resources.ingest_in_memory_bytes",
        "much",
        "must be a size in bytes, such as 1000000 or 1GiB, not 'much'",
    ),
    ("partial_checkpoint_every_s", float("inf"), "must be a positive, finite number, not inf"),
    # Retention
    *[
        (
            "keep_checkpoints",
            bad,
            f"must be all, a list of stages such as [5, 10], or a positive size such as 20GB, not {bad!r}",
        )
        for bad in (None, 0, -5, True, 1.5, "0GB", "20 XB", "lots", "ALL", "", {"stages": [1]}, float("nan"))
    ],
    ("keep_checkpoints", [1, "a"], "must list stages, whole numbers from 1, but one is 'a'"),
    ("keep_checkpoints", [[1]], "must list stages, whole numbers from 1, but one is [1]"),
    ("keep_checkpoints", [True], "must list stages, whole numbers from 1, but one is True"),
    ("keep_checkpoints", [0], "must list stages, whole numbers from 1, but one is 0"),
    ("keep_checkpoints", [2, 5], "stage 5 is not one of 1..4 (num_slices); remove it"),
]
