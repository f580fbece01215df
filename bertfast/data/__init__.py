"""From documents on disk to packed batches of masked pairs. `prepare` writes a store, `Store` reads it; which sentences
an example has (`plan`) and what is masked in it (`masking`) are pure functions of (seed, epoch, index)."""
