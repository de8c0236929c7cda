-- A host that is told to stop begins nothing more: what a policy wanted meanwhile (0) is begun by the next
-- start, while what had begun and has no result (1) is lost.
ALTER TABLE effects ADD COLUMN begun INTEGER NOT NULL DEFAULT 1;
