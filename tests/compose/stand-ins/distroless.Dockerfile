# Stands in for gcr.io/distroless/cc-debian12:nonroot where no registry can be reached: the same Debian packages, unpacked, and the same user.
FROM debian:bookworm-slim AS packages
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && update-ca-certificates
WORKDIR /packages
RUN apt-get download base-files netbase tzdata libc6 libgcc-s1 libgomp1 libstdc++6 libssl3
RUN mkdir /image && for package in *.deb; do dpkg --extract "$package" /image; done \
    && rm -rf /image/usr/share/doc /image/usr/share/man /image/usr/share/locale \
    && mkdir -p /image/etc/ssl/certs /image/home/nonroot /image/tmp && chmod 1777 /image/tmp \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' >/image/etc/passwd \
    && printf 'root:x:0:\nnonroot:x:65532:\n' >/image/etc/group

FROM scratch
COPY --from=packages /image /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532
