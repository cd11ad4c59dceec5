# docker build -t lightning-guide . && docker run --gpus all --shm-size 8g -v "$PWD:/work" lightning-guide --help
FROM python:3.11-slim
COPY . /source
RUN pip install --no-cache-dir "/source[demo]" -c /source/constraints.txt && rm -r /source
WORKDIR /work
ENTRYPOINT ["lightning-guide"]
