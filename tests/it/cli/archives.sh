# Makes tar archives with GNU tar and bsdtar in the directory $1, of trees below the current directory.
good=$1

mkdir -p t/dir/sub t/empty t/many
echo one >t/dir/one
ln t/dir/one t/dir/hard
ln -s one t/dir/symlink
ln -s ../../elsewhere t/dir/climbing
printf 'some text' >t/dir/sub/two
mkfifo t/fifo
chmod 2751 t/dir/sub
chmod 4711 t/dir/sub/two
head -c 300000 /dev/urandom >t/large
touch -d '2001-02-03 04:05:06.789' t/dir/one t/large
touch -h -d '1999-01-01' t/dir/symlink
cp -a t old
touch -d '1931-01-01 UTC' old/dir/one old/empty
touch -h -d '1969-12-31 23:59:58.5 UTC' old/dir/symlink
touch -d '2150-01-01 UTC' old/large
cp -a t long
d=$(printf 'd%.0s' $(seq 120))
mkdir -p "long/$d/$d"
echo deep >"long/$d/$d/$(printf 'f%.0s' $(seq 200))"
ln -s "$(printf 't%.0s' $(seq 180))" long/link
ln "long/$d/$d/$(printf 'f%.0s' $(seq 200))" long/hard
mkdir sparse
truncate -s 3M sparse/hole
cp sparse/hole sparse/parts
for at in $(seq 0 40); do printf %s "$at" | dd of=sparse/parts bs=4096 seek=$((at * 16)) conv=notrunc status=none; done
printf end | dd of=sparse/hole bs=1 seek=1234567 conv=notrunc status=none
truncate -s 1M sparse/all
echo plain >sparse/plain

tar --format=v7 --exclude=fifo -cf "$good/gnu-v7.tar" t
for format in oldgnu gnu ustar posix; do
    tar --format=$format -cf "$good/gnu-$format.tar" t
done
for format in oldgnu gnu posix; do
    tar --format=$format -cf "$good/gnu-$format-times.tar" old
    tar --format=$format -cf "$good/gnu-$format-long.tar" long
done
tar --format=gnu -V 'a label' -cf "$good/gnu-label.tar" t
tar --format=posix -V 'a label' -cf "$good/posix-label.tar" t
tar -Pcf "$good/gnu-absolute.tar" "$PWD/t/dir" 2>/dev/null
tar --format=posix -Pcf "$good/posix-absolute.tar" "$PWD/t/dir" 2>/dev/null
tar --format=gnu -Scf "$good/sparse-gnu.tar" sparse
for version in 0.0 0.1 1.0; do
    tar --format=posix -S --sparse-version=$version -cf "$good/sparse-$version.tar" sparse
done
tar -Sczf "$good/sparse-gnu.tar.gz" sparse
tar -cf "$good/empty.tar" -T /dev/null
tar -czf "$good/empty.tar.gz" -T /dev/null
tar -b 1 -cf "$good/unblocked.tar" t
tar --no-recursion -cf "$good/files-alone.tar" t/dir/sub/two t/dir/one
tar -cf "$good/dot.tar" -C t .
tar -g snapshot -cf "$good/incremental.tar" t 2>/dev/null
cp "$good/gnu-gnu.tar" "$good/joined.tar"
tar -Af "$good/joined.tar" "$good/sparse-1.0.tar"
cp "$good/gnu-gnu.tar" "$good/updated.tar"
echo two >t/dir/one
tar -rf "$good/updated.tar" t/dir/one
gzip -c "$good/gnu-gnu.tar" >"$good/gnu.tar.gz"
head -c 4096 "$good/gnu-gnu.tar" | gzip >"$good/members.tar.gz"
tail -c +4097 "$good/gnu-gnu.tar" | gzip >>"$good/members.tar.gz"
! command -v zstd >/dev/null || zstd -q -c "$good/gnu-posix.tar" >"$good/posix.tar.zst"
! command -v xz >/dev/null || xz -c "$good/gnu-posix.tar" >"$good/posix.tar.xz"
if [ "$(id -u)" = 0 ]; then
    mkdir devices
    mknod devices/char c 5 1 2>/dev/null || true
    mknod devices/block b 259 70000 2>/dev/null || true
    tar --owner=:3000000 --group=:4000000 -cf "$good/devices.tar" devices
    tar --format=posix --owner=:3000000 --group=:4000000 -cf "$good/devices-posix.tar" devices
fi
if command -v bsdtar >/dev/null; then
    for format in pax ustar gnutar; do
        bsdtar --format $format -cf "$good/bsd-$format.tar" t
    done
    bsdtar --format v7 -cf "$good/bsd-v7.tar" t/dir/one t/dir/hard t/large t/empty
    bsdtar --format pax -cf "$good/bsd-pax-times.tar" old
    bsdtar --format pax -cf "$good/bsd-pax-long.tar" long
    bsdtar --format pax --read-sparse -cf "$good/bsd-sparse.tar" sparse
    bsdtar --format pax -cf "$good/bsd-empty.tar" -T /dev/null
fi
