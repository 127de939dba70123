# The server of a collection: no torch, no root, and a root file system that may be read-only.
#
#   voken index photos                      # on a machine with the extra `train`; the collection is photos/.voken
#   docker build -t voken .
#   docker run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#       -p 127.0.0.1:7860:7860 -v "$PWD/photos:/photos:ro" voken
#
# Thumbnails are written to /tmp, and nothing else is written. What follows the image's name replaces /photos: another
# collection, and options of `voken serve`.

FROM python:3.11-slim AS build
# a compiler for the scan, without which a search takes longer
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -r /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY voken voken
COPY voken_lab voken_lab
RUN python -m venv /opt/voken \
    && /opt/voken/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve]' \
    && /opt/voken/bin/pip uninstall --yes pip setuptools \
    && find /opt/voken -name tests -type d -prune -exec rm -r {} +

FROM python:3.11-slim
COPY --from=build /opt/voken /opt/voken
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin voken
USER 10001
WORKDIR /tmp
ENV PATH=/opt/voken/bin:$PATH HOME=/tmp XDG_CACHE_HOME=/tmp/cache PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
ENTRYPOINT ["voken", "serve", "--host", "0.0.0.0"]
CMD ["/photos"]
