FROM python:3.12-slim
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY deepcluster /src/deepcluster
RUN pip install --no-cache-dir /src
RUN useradd --create-home --uid 1000 clusters
USER clusters
WORKDIR /data
ENTRYPOINT ["deepcluster"]
