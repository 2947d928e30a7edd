# Stands in for rust:VERSION-slim-bookworm where no registry can be reached: this machine's toolchain, which is the context.
FROM debian:bookworm-slim
# Debian's OpenSSL instead of the one that the programs are built with elsewhere: compiling that was half of the images' time, and every other
# part of the tests compiles it as well.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev libssl-dev \
    && update-ca-certificates && rm -rf /var/lib/apt/lists/* \
    && mkdir /opt/openssl && ln -s "/usr/lib/$(gcc -dumpmachine)" /opt/openssl/lib && ln -s /usr/include /opt/openssl/include
ENV OPENSSL_NO_VENDOR=1 OPENSSL_STATIC=1 OPENSSL_DIR=/opt/openssl
ENV CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY bin /usr/local/cargo/bin
COPY lib /usr/local/cargo/lib
