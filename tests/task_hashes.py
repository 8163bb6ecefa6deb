"""SHA-256 of example 0 of each generated task, prompt and reference: they are the same on every machine."""

from __future__ import annotations

GENERATED = {
    "niah_noise": "2aa47f20c1d4169bd5808269d1be269d2ffa3044d5845a1d89b2a8f5c6ed7155",
    "niah_prose": "2b4113fba57e01c2479c7b70ee076363b9b34083b5e26a26f405f7879494be9f",
    "multikey": "9f95ad18d06ae02d3cd96a2718145c4b62515f46b240efa093133e71a2004666",
    "multivalue": "7fad1e10e6c25723f91ed0d8c92b739e1a4b89628c9e64826f24073b36ac9ebb",
    "keyvalue": "399ccee36b6a3419faca828bf60ee9f28459277c58d352fd229418ca865bb26d",
    "uuid_kv": "5402c966811051bcccad393f281d76ff319b47c70c22d2dd90f95d96b3c9380e",
    "passkey": "a8ed8b907d72b7ca17219e8ab67a9db6022a33799115903e3a78ac81c3278402",
    "number_string": "75c38e686e549846577a4e727460d42576c51b640228411e2b2e90182a8552ba",
    "tracking": "04d868e8aba3feb959a9d17b444c1399477b0d10216753edb9188d58e5a43976",
}
"""Of prompt + reference_text of the first example at 500 tokens, DEVELOPMENT_SEED."""

PUBLISHED = {
    "niah_single_3": "ecfb75f13b62b890f60c283069733f76f28093ddbdbb56b7c0445cabcf8c8f71",
    "niah_multikey_1": "d51add8ca3ccb40067a8e10c76aa34a7a523041add176a54893cda74d640281a",
    "niah_multikey_2": "fd77402e0eb32690aad39090635924ebbaa6c569451a834bf478cddc91fc209b",
    "niah_multikey_3": "1322ee643a95c69138e0da6fe5cc455df4622e16409199db6eebab685c226bd6",
    "niah_multiquery": "c787b9253846e82eb85b0427fcbde518619e5a9613067b1e570854c6d7bb6b33",
    "vt": "916940506c772e251eb6fb0f2cc2b946b0cc5ea4994f6c6c69ccfdc4340bb47b",
    "cwe": "12753916711ba72239e961192310827e8d2e1161d9fb5e050157bc4753acaa28",
    "fwe": "fbf41c1317b75f10ae8f327eabf480eb2850fd85b34d668184241f261319bff1",
    "niah": "22d8d25effb2d195efe1dbdaa76dd74b44c930eb0e57a1dd39a126f14ad86452",
    "math_find": "246730e140ede17a91516f45c6eb0370f8ad8183b8a444e8685aee72b374aa33",
    "code_run": "6168bf7ae4863755a749930dad3b1b7aa533aba6c2ec1db7b1f3cf97f7071d4b",
    "kv_retrieval": "a71190f880a3e27a73a7d14f11a031301fc35247fab320f04122c655e08d6d13",
}
"""Of prompt + reference_text of the first example at 1,500 tokens, DEVELOPMENT_SEED."""

OWN = {
    "gist": "ea3f1dde8be4e483192ef23d67fd95a5e0f4a08e23b286ed8059b492c3e6d90d",
    "topics": "5f37fe7d482fad19855d86f0d0244f44f0df22de7be3a0b018ee9f47aa6dee6b",
    "tone": "44c40c606102efbef60715a380eb4aa748dbc58ac6ed59ad529606e253cda3e1",
    "compare": "6deb2333ad6a04c5fdff532afc352a0548f569dc1b30f3fcddcab0c13efe7f5a",
    "sum": "e8a6fc80815eabbdffe870b23e216eeffa0502365298927eb0c7926ace38a1a6",
    "rule": "04259615f166cc22d8b1140e03ea812b0569f53cccb668111b80fe188a9d85a3",
    "turns": "a59431f136080ed19be3ff0b70886aa5139d73db901e7543728b97b1bb29ff87",
    "function": "1f387e6ce5cc2ee9c89d8f89b86e671e2019f55041d3ae14f657884fc7260a41",
    "identifier": "021e8f3110656f13a3ad8e7074a10cde34f57ec4b15d2d3d1e9f74b8fbfbc0fa",
    "table": "c35411f070aa1afad1bc5f468eaef36b75e88fcbbaf11c5185bd6838e148545e",
    "records": "72b0d49b2685a8cea098b8ab170ca7d8c8bbb102d0d3051dd9a30aa9602bfb54",
}
"""Of prompt + reference_text of the first example at 500 tokens of test_eval_tasks_own.py, DEVELOPMENT_SEED."""
