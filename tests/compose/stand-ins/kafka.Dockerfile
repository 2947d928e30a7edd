# Stands in for apache/kafka:VERSION where no registry can be reached: the real broker's jars, which are the context, and what
# docker-compose.yml uses of the image: its variables KAFKA_..., user, volume and tools.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends openjdk-17-jre-headless \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 1000 appuser \
    && useradd --gid appuser --uid 1000 --create-home appuser \
    && install -d -o appuser -g appuser /var/lib/kafka/data /opt/kafka/config
COPY libs /opt/kafka/libs
COPY kafka-run /opt/kafka/run
RUN mkdir /opt/kafka/bin && for tool in topics console-consumer console-producer consumer-groups configs transactions; do \
        ln -s ../run "/opt/kafka/bin/kafka-$tool.sh"; done
USER appuser
VOLUME /var/lib/kafka/data
EXPOSE 9092
CMD ["/opt/kafka/run"]
