"""detectron2 configs: defaults, ``_BASE_`` chains, dotted overrides, safe YAML."""

from zooport.export_core.config.load import declare_defaults, default_config, load_config
from zooport.export_core.config.projects import project_of, project_of_name, projects_of, refusal_hint
from zooport.export_core.config.tree import Config, ConfigNode

__all__ = [
    "Config",
    "ConfigNode",
    "declare_defaults",
    "default_config",
    "load_config",
    "project_of",
    "project_of_name",
    "projects_of",
    "refusal_hint",
]
