"""Results that nobody measured, for tests of what is made of them."""


def entry(provider="engine bfloat16", seconds=(2.0, 1.0, 4.0), **fields):
    median = sorted(seconds)[len(seconds) // 2]
    return {
        "case": "m/128",
        "model": "m",
        "provider": provider,
        "status": "ok",
        "texts": 10,
        "calls": 1,
        "decoder_tokens": 1280,
        "encoder_tokens": 0,
        "operations": 1e12,
        "seconds": list(seconds),
        "median_s": median,
        "texts_per_s": 10 / median,
        "tokens_per_s": 1280 / median,
        "tflops": 1 / median,
        **fields,
    }


def content(*entries, **fields):
    return {
        "cpu": "Some CPU",
        "threads": 2,
        "torch": "2.13.0",
        "python": "3.11",
        "commit": "abcdef0123",
        "dirty": False,
        "kind": "bench",
        "ceilings": {"copy_gb_per_s": 20.0, "gemm_tflops": {"bfloat16": 0.8, "float32": 0.2}},
        "ceilings_at_end": {"copy_gb_per_s": 25.0, "gemm_tflops": {"bfloat16": 1.0}},
        "results": list(entries),
        **fields,
    }


def method(name, length, rows, ms):
    fields = {"case": f"m/{length} tokens/methods", "method": name, "text_tokens": length}
    return entry(seconds=(ms / 100,), decoder_tokens=rows * 10, **fields)
