# cifar-sweep as an image. For NVIDIA GPUs: docker build --build-arg TORCH_INDEX=https://pypi.org/simple .
FROM python:3.12-slim

# Where pip finds torch: PyTorch's wheels for the CPU. Those on PyPI bring CUDA with them, several gigabytes of it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

# What compiles the kernels that groups of small networks train with, for the machine that the image runs on.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

# 1000 is the first user of most Linux machines: folders of theirs can be mounted as they are. A new volume takes over
# the owner of the folder that it is mounted on.
RUN useradd --create-home --uid 1000 sweep \
    && install --directory --owner=sweep --group=sweep /artifacts /cache /data /exports

# What is needed comes before the source, and torch before all else: after a change of the source a build takes seconds.
WORKDIR /build
COPY pyproject.toml .
RUN python -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
needed = project['dependencies'] + project['optional-dependencies']['s3']; \
torch = [each for each in needed if each.startswith('torch')]; \
open('torch.txt', 'w').write('\n'.join(torch)); \
open('others.txt', 'w').write('\n'.join(each for each in needed if each not in torch))"
RUN pip install --index-url "$TORCH_INDEX" --requirement torch.txt
RUN pip install --requirement others.txt

COPY README.md LICENSE ./
COPY sweeps sweeps
COPY cifar_sweep cifar_sweep
RUN pip install --no-deps . && pip check && rm -r /build

USER sweep
# Here the product's usual places data/, artifacts/ and exports/ are /data, /artifacts and /exports.
WORKDIR /
ENTRYPOINT ["cifar-sweep"]
CMD ["worker"]
