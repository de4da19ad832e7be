# RUB on a CPU: docker build -t rub . && docker run --rm -v "$PWD/out:/out" rub run quick --workers 2 --out /out
# On a GPU, build on an image that has Python and torch for it, such as the tag of pytorch/pytorch for your driver:
#   docker build -t rub --build-arg BASE=pytorch/pytorch:TAG .
ARG BASE=python:3.12-slim
FROM ${BASE}
WORKDIR /rub
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt .
# Stages are kept here: mount a volume to keep them. Any user may run the image, also one without an entry in passwd.
ENV RUB_STORE=/store MPLCONFIGDIR=/tmp/matplotlib HF_HOME=/tmp/huggingface
RUN mkdir /store && chmod 1777 /store
ENTRYPOINT ["rub"]
CMD ["--help"]
