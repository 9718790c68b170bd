BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0004');
CREATE TABLE artifacts (
	export_pk INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	path TEXT NOT NULL, 
	main_file TEXT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	bytes BIGINT NOT NULL, 
	files JSON NOT NULL, 
	CONSTRAINT pk_artifacts PRIMARY KEY (export_pk, number), 
	CONSTRAINT fk_artifacts_export_pk_number FOREIGN KEY(export_pk, number) REFERENCES attempts (export_pk, number)
);
INSERT INTO "artifacts" VALUES(1,1,'/out/mask_rcnn/torchscript-trace','model.ts','abababababababababababababababababababababababababababababababab',1234,'{"model.ts": "abababababababababababababababababababababababababababababababab", "model.json": "cd"}');
CREATE TABLE attempts (
	export_pk INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	worker TEXT NOT NULL, 
	log TEXT NOT NULL, 
	started_at VARCHAR(32) NOT NULL, 
	finished_at VARCHAR(32), 
	seconds DOUBLE, 
	stages JSON NOT NULL, 
	notes JSON NOT NULL, command TEXT, 
	CONSTRAINT pk_attempts PRIMARY KEY (export_pk, number), 
	CONSTRAINT fk_attempts_export_pk FOREIGN KEY(export_pk) REFERENCES exports (pk)
);
INSERT INTO "attempts" VALUES(1,1,'succeeded','worker-1','/logs/r-20261122-145146-en9k/1.log','2026-11-22T14:51:46.891373Z','2026-11-22T14:51:46.892853Z',2.5,'{"load": 0.5, "export": 2.0}','["noted"]',NULL);
INSERT INTO "attempts" VALUES(2,1,'failed','worker-1','/logs/r-20261122-145146-en9k/2.log','2026-11-22T14:51:46.899179Z','2026-11-22T14:51:46.899848Z',1.0,'{}','[]',NULL);
INSERT INTO "attempts" VALUES(3,1,'unsupported','worker-1','/logs/r-20261122-145146-en9k/3.log','2026-11-22T14:51:46.901005Z','2026-11-22T14:51:46.901623Z',1.0,'{}','[]',NULL);
INSERT INTO "attempts" VALUES(5,2,'failed','worker-1','/logs/r-20261122-145146-rrn8/2.log','2026-11-22T14:51:46.924140Z','2026-11-22T14:51:46.924808Z',1.0,'{}','[]',NULL);
INSERT INTO "attempts" VALUES(6,2,'unsupported','worker-1','/logs/r-20261122-145146-rrn8/3.log','2026-11-22T14:51:46.925561Z','2026-11-22T14:51:46.930247Z',1.0,'{}','[]',NULL);
CREATE TABLE baseline_attempts (
	run_id VARCHAR(64) NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	number INTEGER NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	log TEXT NOT NULL, 
	seconds DOUBLE, 
	failure JSON, 
	finished_at VARCHAR(32) NOT NULL, 
	CONSTRAINT pk_baseline_attempts PRIMARY KEY (run_id, "key", number), 
	CONSTRAINT fk_baseline_attempts_run_id_key FOREIGN KEY(run_id, "key") REFERENCES baselines (run_id, "key")
);
CREATE TABLE baseline_metrics (
	run_id VARCHAR(64) NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	name VARCHAR(128) NOT NULL, 
	value DOUBLE, 
	CONSTRAINT pk_baseline_metrics PRIMARY KEY (run_id, "key", name), 
	CONSTRAINT fk_baseline_metrics_run_id_key FOREIGN KEY(run_id, "key") REFERENCES baselines (run_id, "key")
);
INSERT INTO "baseline_metrics" VALUES('r-20261122-145146-en9k','baseline-mask_rcnn','bbox/AP',40.0);
CREATE TABLE baselines (
	run_id VARCHAR(64) NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	checkpoint_id INTEGER NOT NULL, 
	dataset TEXT NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	seconds DOUBLE, 
	failure JSON, 
	finished_at VARCHAR(32), 
	CONSTRAINT pk_baselines PRIMARY KEY (run_id, "key"), 
	CONSTRAINT fk_baselines_run_id FOREIGN KEY(run_id) REFERENCES runs (id), 
	CONSTRAINT fk_baselines_checkpoint_id FOREIGN KEY(checkpoint_id) REFERENCES checkpoints (id)
);
INSERT INTO "baselines" VALUES('r-20261122-145146-en9k','baseline-mask_rcnn',1,'val','succeeded',3.0,'null','2026-11-22T14:51:46.881131Z');
INSERT INTO "baselines" VALUES('r-20261122-145146-en9k','baseline-cascade',2,'val','cancelled',NULL,NULL,NULL);
INSERT INTO "baselines" VALUES('r-20261122-145146-en9k','baseline-fcos',3,'val','cancelled',NULL,NULL,NULL);
INSERT INTO "baselines" VALUES('r-20261122-145146-rrn8','baseline-mask_rcnn',1,'val','cancelled',NULL,NULL,NULL);
INSERT INTO "baselines" VALUES('r-20261122-145146-rrn8','baseline-cascade',2,'val','cancelled',NULL,NULL,NULL);
INSERT INTO "baselines" VALUES('r-20261122-145146-rrn8','baseline-fcos',3,'val','cancelled',NULL,NULL,NULL);
CREATE TABLE checkpoints (
	id INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	name TEXT NOT NULL, 
	config TEXT NOT NULL, 
	weights TEXT NOT NULL, 
	overrides JSON NOT NULL, imports JSON DEFAULT '[]' NOT NULL, 
	CONSTRAINT pk_checkpoints PRIMARY KEY (id), 
	CONSTRAINT uq_checkpoints_digest UNIQUE (digest)
);
INSERT INTO "checkpoints" VALUES(1,'b2509d0352e89f60e1f8983a936eee8fb696435515820ce3bd5251af559459fb','mask_rcnn','/zoo/mask_rcnn/config.yaml','/zoo/mask_rcnn/model.pth','{}','[]');
INSERT INTO "checkpoints" VALUES(2,'4b6650d529c2114acff809b91e2cfb0ec074bde7da1fad8925dd1791bf603ed3','cascade','/zoo/cascade/config.yaml','/zoo/cascade/model.pth','{}','[]');
INSERT INTO "checkpoints" VALUES(3,'602e9c5bcd0a4860b8937a2f688530b8535a088807f38aa55ca3797c7d226f0a','fcos','/zoo/fcos/config.yaml','/zoo/fcos/model.pth','{}','[]');
CREATE TABLE exports (
	pk INTEGER NOT NULL, 
	id VARCHAR(96) NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	checkpoint_id INTEGER NOT NULL, 
	model TEXT NOT NULL, 
	format VARCHAR(64) NOT NULL, 
	content_key VARCHAR(64) NOT NULL, 
	target VARCHAR(64) NOT NULL, 
	latest BOOLEAN NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	attempt INTEGER NOT NULL, 
	source_pk INTEGER, 
	job JSON NOT NULL, 
	created_at VARCHAR(32) NOT NULL, code VARCHAR(64), 
	CONSTRAINT pk_exports PRIMARY KEY (pk), 
	CONSTRAINT uq_exports_id UNIQUE (id), 
	CONSTRAINT fk_exports_run_id FOREIGN KEY(run_id) REFERENCES runs (id), 
	CONSTRAINT fk_exports_checkpoint_id FOREIGN KEY(checkpoint_id) REFERENCES checkpoints (id), 
	CONSTRAINT fk_exports_source_pk FOREIGN KEY(source_pk) REFERENCES exports (pk)
);
INSERT INTO "exports" VALUES(1,'r-20261122-145146-en9k.1','r-20261122-145146-en9k',1,'mask_rcnn','torchscript-trace','key-mask_rcnn-torchscript-trace','8e475797df3273067b466036d024e061717b59481688278aff2987c3518cb912',0,'succeeded',1,NULL,'{"id": "r-20261122-145146-en9k.1", "key": "key-mask_rcnn-torchscript-trace", "format": "torchscript-trace", "output": "/out/mask_rcnn/torchscript-trace", "log": "/logs/r-20261122-145146-en9k/1.log", "options": {"batch": 1}, "dataset": {"name": "val", "annotations": "/zoo/val.json", "images": "/zoo/val", "limit": 50, "panoptic": null, "panoptic_masks": null, "semantic_masks": null}, "baseline": "baseline-mask_rcnn", "tolerance": {"AP": 0.1}, "timeout": 60.0, "sample_image": null}','2026-11-22T14:51:46.879578Z',NULL);
INSERT INTO "exports" VALUES(2,'r-20261122-145146-en9k.2','r-20261122-145146-en9k',2,'cascade','torchscript-trace','key-cascade-torchscript-trace','64abefcb9eebfda3a9b067a174c321e4c4e66400d9007f2be0f8b395c871b67e',0,'failed',1,NULL,'{"id": "r-20261122-145146-en9k.2", "key": "key-cascade-torchscript-trace", "format": "torchscript-trace", "output": "/out/cascade/torchscript-trace", "log": "/logs/r-20261122-145146-en9k/2.log", "options": {"batch": 1}, "dataset": {"name": "val", "annotations": "/zoo/val.json", "images": "/zoo/val", "limit": 50, "panoptic": null, "panoptic_masks": null, "semantic_masks": null}, "baseline": "baseline-cascade", "tolerance": {"AP": 0.1}, "timeout": 60.0, "sample_image": null}','2026-11-22T14:51:46.879578Z','worker.crashed');
INSERT INTO "exports" VALUES(3,'r-20261122-145146-en9k.3','r-20261122-145146-en9k',3,'fcos','torchscript-trace','key-fcos-torchscript-trace','a7fdad50dad2a27e400b3c9d39052f03152911a8bdcb9b2cc1c82ce09fa8f1d9',0,'unsupported',1,NULL,'{"id": "r-20261122-145146-en9k.3", "key": "key-fcos-torchscript-trace", "format": "torchscript-trace", "output": "/out/fcos/torchscript-trace", "log": "/logs/r-20261122-145146-en9k/3.log", "options": {"batch": 1}, "dataset": {"name": "val", "annotations": "/zoo/val.json", "images": "/zoo/val", "limit": 50, "panoptic": null, "panoptic_masks": null, "semantic_masks": null}, "baseline": "baseline-fcos", "tolerance": {"AP": 0.1}, "timeout": 60.0, "sample_image": null}','2026-11-22T14:51:46.879578Z','unsupported.architecture');
INSERT INTO "exports" VALUES(4,'r-20261122-145146-rrn8.1','r-20261122-145146-rrn8',1,'mask_rcnn','torchscript-trace','key-mask_rcnn-torchscript-trace','8e475797df3273067b466036d024e061717b59481688278aff2987c3518cb912',1,'succeeded',1,1,'{"id": "r-20261122-145146-rrn8.1", "key": "key-mask_rcnn-torchscript-trace", "format": "torchscript-trace", "output": "/out/mask_rcnn/torchscript-trace", "log": "/logs/r-20261122-145146-rrn8/1.log", "options": {"batch": 1}, "dataset": {"name": "val", "annotations": "/zoo/val.json", "images": "/zoo/val", "limit": 50, "panoptic": null, "panoptic_masks": null, "semantic_masks": null}, "baseline": "baseline-mask_rcnn", "tolerance": {"AP": 0.1}, "timeout": 60.0, "sample_image": null}','2026-11-22T14:51:46.923146Z',NULL);
INSERT INTO "exports" VALUES(5,'r-20261122-145146-rrn8.2','r-20261122-145146-rrn8',2,'cascade','torchscript-trace','key-cascade-torchscript-trace','64abefcb9eebfda3a9b067a174c321e4c4e66400d9007f2be0f8b395c871b67e',1,'failed',2,NULL,'{"id": "r-20261122-145146-rrn8.2", "key": "key-cascade-torchscript-trace", "format": "torchscript-trace", "output": "/out/cascade/torchscript-trace", "log": "/logs/r-20261122-145146-rrn8/2.log", "options": {"batch": 1}, "dataset": {"name": "val", "annotations": "/zoo/val.json", "images": "/zoo/val", "limit": 50, "panoptic": null, "panoptic_masks": null, "semantic_masks": null}, "baseline": "baseline-cascade", "tolerance": {"AP": 0.1}, "timeout": 60.0, "sample_image": null}','2026-11-22T14:51:46.923146Z','checkpoint.mismatch');
INSERT INTO "exports" VALUES(6,'r-20261122-145146-rrn8.3','r-20261122-145146-rrn8',3,'fcos','torchscript-trace','key-fcos-torchscript-trace','a7fdad50dad2a27e400b3c9d39052f03152911a8bdcb9b2cc1c82ce09fa8f1d9',1,'unsupported',2,NULL,'{"id": "r-20261122-145146-rrn8.3", "key": "key-fcos-torchscript-trace", "format": "torchscript-trace", "output": "/out/fcos/torchscript-trace", "log": "/logs/r-20261122-145146-rrn8/3.log", "options": {"batch": 1}, "dataset": {"name": "val", "annotations": "/zoo/val.json", "images": "/zoo/val", "limit": 50, "panoptic": null, "panoptic_masks": null, "semantic_masks": null}, "baseline": "baseline-fcos", "tolerance": {"AP": 0.1}, "timeout": 60.0, "sample_image": null}','2026-11-22T14:51:46.923146Z','unsupported.architecture');
CREATE TABLE failures (
	export_pk INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	code VARCHAR(64) NOT NULL, 
	stage VARCHAR(16) NOT NULL, 
	message TEXT NOT NULL, 
	hint TEXT NOT NULL, 
	retryable BOOLEAN NOT NULL, 
	details JSON NOT NULL, 
	recorded_at VARCHAR(32) NOT NULL, 
	CONSTRAINT pk_failures PRIMARY KEY (export_pk, number), 
	CONSTRAINT fk_failures_export_pk FOREIGN KEY(export_pk) REFERENCES exports (pk)
);
INSERT INTO "failures" VALUES(2,1,'worker.crashed','','signal 11','mend it',1,'{"names": ["a", "b"]}','2026-11-22T14:51:46.900206Z');
INSERT INTO "failures" VALUES(3,1,'unsupported.architecture','','FCOS','mend it',0,'{"names": ["a", "b"]}','2026-11-22T14:51:46.905994Z');
INSERT INTO "failures" VALUES(5,2,'checkpoint.mismatch','','2 parameters missing','mend it',0,'{"names": ["a", "b"]}','2026-11-22T14:51:46.925118Z');
INSERT INTO "failures" VALUES(6,2,'unsupported.architecture','','FCOS','mend it',0,'{"names": ["a", "b"]}','2026-11-22T14:51:46.930555Z');
CREATE TABLE metrics (
	export_pk INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	name VARCHAR(128) NOT NULL, 
	baseline DOUBLE, 
	exported DOUBLE, 
	delta DOUBLE, 
	CONSTRAINT pk_metrics PRIMARY KEY (export_pk, number, name), 
	CONSTRAINT fk_metrics_export_pk_number FOREIGN KEY(export_pk, number) REFERENCES attempts (export_pk, number)
);
INSERT INTO "metrics" VALUES(1,1,'bbox/AP',40.0,39.5,-0.5);
INSERT INTO "metrics" VALUES(1,1,'bbox/AP50',NULL,59.5,NULL);
CREATE TABLE runs (
	id VARCHAR(64) NOT NULL, 
	parent_id VARCHAR(64), 
	kind VARCHAR(16) NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	manifest_path TEXT NOT NULL, 
	manifest_text TEXT NOT NULL, 
	host TEXT NOT NULL, 
	pid INTEGER NOT NULL, 
	process TEXT NOT NULL, 
	created_at VARCHAR(32) NOT NULL, 
	finished_at VARCHAR(32), heartbeat_at VARCHAR(32), number INTEGER DEFAULT '0' NOT NULL, cancel_requested_at VARCHAR(32), activity JSON, 
	CONSTRAINT pk_runs PRIMARY KEY (id), 
	CONSTRAINT fk_runs_parent_id FOREIGN KEY(parent_id) REFERENCES runs (id)
);
INSERT INTO "runs" VALUES('r-20261122-145146-en9k',NULL,'submit','failed','/zoo/zoo.yaml','models: ...','builder',1,'x','2026-11-22T14:51:46.876461Z','2026-11-22T14:51:46.907856Z','2026-11-22T14:51:46.907856Z',1,NULL,NULL);
INSERT INTO "runs" VALUES('r-20261122-145146-rrn8',NULL,'submit','failed','/zoo/zoo.yaml','models: ...','builder',1,'x','2026-11-22T14:51:46.917859Z','2026-11-22T14:51:46.931427Z','2026-11-22T14:51:46.931427Z',2,NULL,NULL);
CREATE INDEX ix_runs_status ON runs (status);
CREATE INDEX ix_runs_created_at ON runs (created_at);
CREATE INDEX ix_exports_run_status ON exports (run_id, status, pk, source_pk);
CREATE INDEX ix_exports_latest_status ON exports (latest, status, pk);
CREATE INDEX ix_exports_latest_format ON exports (latest, format, pk);
CREATE INDEX ix_exports_latest_model ON exports (latest, model, pk);
CREATE INDEX ix_exports_content_key ON exports (content_key, status, pk);
CREATE INDEX ix_exports_target ON exports (target, pk);
CREATE INDEX ix_baselines_key ON baselines ("key", status, finished_at);
CREATE INDEX ix_exports_latest_code ON exports (latest, code, pk);
CREATE INDEX ix_runs_number ON runs (number);
CREATE INDEX ix_baseline_attempts_key ON baseline_attempts ("key");
COMMIT;
