# docker build -t fastviz .                                            for an NVIDIA GPU, and for the CPU too
# docker build -t fastviz --build-arg TORCH_INDEX=ADDRESS .            smaller: the address of torch's builds for the CPU
# docker run -p 7860:7860 -e FASTVIZ_PASSWORD=... [--gpus all] [-v fastviz:/models -e FASTVIZ_FETCH=sd15] fastviz
FROM python:3.11-slim
ARG TORCH_INDEX=
RUN useradd --create-home --uid 1000 fastviz && mkdir /models /history && chown fastviz /models /history
WORKDIR /home/fastviz/app
# Triton builds its launcher with it, on a GPU
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY requirements.txt .
# torch and torchvision come from one place, or neither works
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision; fi \
    && pip install --no-cache-dir -r requirements.txt
COPY --chown=fastviz app.py spaces_config.yaml README.md LICENSE THIRD_PARTY.md ./
COPY --chown=fastviz fastviz fastviz
COPY --chown=fastviz assets assets
USER fastviz
ENV FASTVIZ_MODELS=/models FASTVIZ_HISTORY=/history FASTVIZ_PROFILE=local PYTHONUNBUFFERED=1
EXPOSE 7860
CMD ["python", "-m", "fastviz.supervise", "--host", "0.0.0.0"]
