# docker build -t plastibench .
# docker run --rm -v "$PWD:/work" plastibench run cl-digits --agent vit-nano --intervention none,rnr
# On a GPU, add: --gpus all --shm-size 1g
FROM python:3.12-slim

COPY . /src
RUN pip install --no-cache-dir '/src[figures,pandas]' && rm -rf /src

# Results and data belong in the mounted folder, and to the user who starts the container (add: --user "$(id -u):$(id -g)").
RUN useradd --create-home plastibench
USER plastibench
ENV HOME=/tmp
WORKDIR /work
VOLUME /work

ENTRYPOINT ["plastibench"]
CMD ["--help"]
