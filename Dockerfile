# docker build -t fastviz .                                            the CPU
# docker build -t fastviz-cuda --build-arg DEVICE=cuda .               an NVIDIA GPU
# docker run -p 7860:7860 -e FASTVIZ_PASSWORD=... [--gpus all] [-v fastviz:/models -e FASTVIZ_FETCH=sd15] fastviz
FROM python:3.12-slim
ARG DEVICE=cpu
RUN useradd --create-home --uid 1000 fastviz && mkdir /models /history && chown fastviz /models /history
WORKDIR /home/fastviz/app
COPY requirements.txt .
# plain names bring the builds for CUDA; torch and torchvision come from one place, or neither works
RUN if [ "$DEVICE" = cpu ]; then pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision; fi \
    && pip install --no-cache-dir -r requirements.txt
COPY --chown=fastviz app.py spaces_config.yaml README.md LICENSE THIRD_PARTY.md ./
COPY --chown=fastviz fastviz fastviz
COPY --chown=fastviz assets assets
USER fastviz
ENV FASTVIZ_MODELS=/models FASTVIZ_HISTORY=/history FASTVIZ_PROFILE=local PYTHONUNBUFFERED=1
EXPOSE 7860
CMD ["python", "app.py", "--host", "0.0.0.0"]
