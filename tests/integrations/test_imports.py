"""What `import gradscope` brings in."""

import subprocess
import sys

OPTIONAL = ["transformers", "accelerate", "lightning", "pytorch_lightning", "tensorboard", "wandb"]


def test_importing_gradscope_imports_no_framework():
    program = f"""
import sys, torch, pandas
before = set(sys.modules)
import gradscope, gradscope.cli, gradscope.integrations.exporters
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(new & set({OPTIONAL})))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
