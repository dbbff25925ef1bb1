# The base install: runs exported models, without torch. docs/guides/deploy.md says how to build and use it.
FROM python:3.12-slim AS build
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.12-slim
# Extras such as openvino: docker build --build-arg EXTRAS=openvino
ARG EXTRAS=""
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)${EXTRAS:+[$EXTRAS]}" && rm -r /wheels \
    && useradd --create-home detector
USER detector
WORKDIR /work
ENTRYPOINT ["rtdetrv4"]
CMD ["--help"]
