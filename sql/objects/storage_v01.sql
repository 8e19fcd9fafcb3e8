-- Vectors of up to 2,000 values fit a page; kept inline and uncompressed they are scanned 5 to 10 times faster.
ALTER TABLE activations ALTER COLUMN values SET STORAGE PLAIN;
ALTER TABLE activation_cubes ALTER COLUMN values SET STORAGE PLAIN;
ALTER TABLE clip_concept_scores ALTER COLUMN scores SET STORAGE EXTERNAL;
ALTER TABLE clip_concept_scores ALTER COLUMN cubed SET STORAGE EXTERNAL;
-- Inline too, as long as a page holds them: an encoder may have more than 2,000 dimensions.
ALTER TABLE text_embeddings ALTER COLUMN embedding SET STORAGE MAIN;
ALTER TABLE clip_embeddings ALTER COLUMN embedding SET STORAGE MAIN;
ALTER TABLE summary_embeddings ALTER COLUMN embedding SET STORAGE MAIN;
-- Blocks are float16 noise: compressing them costs time and gains nothing.
ALTER TABLE activation_blocks ALTER COLUMN data SET STORAGE EXTERNAL;
