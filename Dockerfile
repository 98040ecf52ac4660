# The image of every Airflow service of docker-compose.yaml: our code on the official image, from the locks.
FROM apache/airflow:3.3.2-python3.11
COPY --chown=airflow:root requirements.lock requirements-server.lock /opt/nightmarket/
RUN pip install --no-cache-dir --require-hashes -r /opt/nightmarket/requirements.lock \
 && pip install --no-cache-dir --require-hashes -r /opt/nightmarket/requirements-server.lock
COPY --chown=airflow:root pyproject.toml README.md LICENSE /opt/nightmarket/
COPY --chown=airflow:root plugins /opt/nightmarket/plugins
COPY --chown=airflow:root include /opt/nightmarket/include
COPY --chown=airflow:root dags /opt/nightmarket/dags
ENV PYTHONPATH=/opt/nightmarket/plugins \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/nightmarket/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/nightmarket/plugins \
    NIGHTMARKET_VAR=/opt/airflow/var
