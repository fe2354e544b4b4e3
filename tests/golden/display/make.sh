#!/usr/bin/env bash
# Writes the files of this folder, and ffmpeg's own pixels of those that are read, to expected.npz.
# FFMPEG=/path/to/ffmpeg PYTHON=/path/to/python bash make.sh   (made with ffmpeg 9.0.2)
set -euo pipefail
cd "$(dirname "$0")"
run() { "${FFMPEG:-ffmpeg}" -v error -y -fflags +bitexact "$@"; }
source=(-f lavfi -i "testsrc2=size=48x32:rate=16:duration=0.375")
x264=(-c:v libx264 -crf 12 -preset veryslow -x264-params "threads=1" -pix_fmt yuv420p -bitexact)
mkdir -p read refused

run "${source[@]}" "${x264[@]}" read/plain.mp4
for degrees in 90 180 270 -90; do
    run -display_rotation $degrees -i read/plain.mp4 -c copy -bitexact read/turn$degrees.mp4
    run -display_rotation $degrees -display_hflip -i read/plain.mp4 -c copy -bitexact read/turn${degrees}_mirrored.mp4
done
run -display_hflip -i read/plain.mp4 -c copy -bitexact read/mirrored.mp4
run -display_vflip -i read/plain.mp4 -c copy -bitexact read/upside_down.mp4
run -display_rotation 90 -i read/plain.mp4 -c copy -bitexact read/turn90.mkv

# Pixels that are not square, also turned; 639:640 is what rounding to even sizes leaves.
run "${source[@]}" "${x264[@]}" -vf setsar=4/3 read/wide.mp4
run "${source[@]}" "${x264[@]}" -vf setsar=10/11 read/narrow.mp4
run "${source[@]}" "${x264[@]}" -vf setsar=639/640 read/nearly_square.mp4
run -display_rotation 90 -i read/wide.mp4 -c copy -bitexact read/wide_turn90.mp4

# Range, matrix, depth, formats.
run "${source[@]}" "${x264[@]}" -vf scale=out_range=pc -color_range pc read/full.mp4
run "${source[@]}" -c:v libvpx-vp9 -vf scale=out_range=pc -color_range pc -bitexact read/full.webm
run "${source[@]}" "${x264[@]}" -vf scale=out_color_matrix=bt709 -colorspace bt709 -color_primaries bt709 -color_trc bt709 read/bt709.mp4
run "${source[@]}" "${x264[@]}" -vf scale=out_color_matrix=bt2020 -colorspace bt2020nc read/bt2020_matrix.mp4
run "${source[@]}" "${x264[@]}" -pix_fmt yuv420p10le read/ten_bits.mp4
run "${source[@]}" "${x264[@]}" -vf format=gray,scale=out_range=tv -pix_fmt gray -color_range tv read/gray.mp4
run "${source[@]}" -c:v ffv1 -pix_fmt gbrp10le -bitexact read/rgb_10.mkv
run "${source[@]}" -c:v qtrle -pix_fmt argb -bitexact read/opaque.mov

# Times: variable rates, edit lists, a late start, times below 0, fragments, no times at all.
gaps="setpts=(N+2*gt(N\,2)+3*gt(N\,4))/16/TB"
run "${source[@]}" "${x264[@]}" -vf "$gaps" -fps_mode vfr read/gaps.mp4
run -i read/gaps.mp4 -c copy -bitexact read/gaps.mkv
run -i read/gaps.mp4 -c:v libvpx-vp9 -fps_mode vfr -bitexact read/gaps.webm
run -i read/gaps.mp4 -fps_mode vfr -bitexact read/gaps.gif
run -ss 0.13 -i read/plain.mp4 -c copy -bitexact read/trimmed.mp4
run -itsoffset 0.5 -i read/plain.mp4 -c copy -bitexact read/late.mp4
run -i read/plain.mp4 -c copy -output_ts_offset -0.2 -bitexact read/below_zero.mkv
run -i read/plain.mp4 -c copy -movflags frag_keyframe+empty_moov -bitexact read/fragments.mp4
{ cat read/plain.mp4; printf 'xyz'; } > read/tail.mp4
{ cat read/plain.mp4; printf 'a signature of some program'; } > read/long_tail.mp4
run -i read/plain.mp4 -c copy -bitexact read/bare.h264
run "${source[@]}" -r 24000/1001 "${x264[@]}" -f matroska read/ntsc.mkv
run "${source[@]}" -frames:v 1 "${x264[@]}" read/one_frame.mp4
run "${source[@]}" -f apng -bitexact read/animation.apng

run "${source[@]}" "${x264[@]}" -vf setparams=color_trc=smpte2084 refused/pq.mp4
run "${source[@]}" "${x264[@]}" -vf setparams=color_trc=arib-std-b67 refused/hlg.mp4
run "${source[@]}" "${x264[@]}" -vf setparams=color_primaries=smpte432 refused/display_p3.mp4
run "${source[@]}" "${x264[@]}" -vf setparams=colorspace=ycgco refused/ycgco.mp4
run "${source[@]}" "${x264[@]}" -flags +ilme+ildct -x264-params tff=1 refused/fields.mp4
run "${source[@]}" -c:v libvpx-vp9 -vf format=rgba,colorchannelmixer=aa=0.5,format=yuva420p -bitexact refused/alpha.webm
run "${source[@]}" -c:v qtrle -vf format=rgba,colorchannelmixer=aa=0.5,format=argb -bitexact refused/alpha.mov
run "${source[@]}" "${x264[@]}" -x264-params frame-packing=3 refused/two_views.mp4
run "${source[@]}" -f lavfi -i anullsrc=d=0.2 -map 1 -map 0 -frames:v 1 -c:v png -c:a aac -disposition:v attached_pic -bitexact refused/cover.m4a
run -display_rotation 30 -i read/plain.mp4 -c copy -bitexact refused/turn30.mp4

"${PYTHON:-python}" - <<'PYTHON'
import os, pathlib, subprocess, numpy
FFMPEG = os.environ.get("FFMPEG", "ffmpeg")
SQUARE = {"wide.mp4", "narrow.mp4", "wide_turn90.mp4"}
expected = {}
for path in sorted(pathlib.Path("read").iterdir()):
    scale = ["-vf", "scale=iw*sar:ih,setsar=1"] if path.name in SQUARE else []
    into = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = [FFMPEG, "-v", "error", "-i", str(path), *scale, *into]
    pixels = subprocess.run(command, check=True, capture_output=True).stdout
    command = [FFMPEG, "-v", "error", "-i", str(path), *scale, "-frames:v", "1", "-c:v", "ppm", "-f", "image2pipe", "-"]
    head = subprocess.run(command, check=True, capture_output=True).stdout.split(maxsplit=3)
    shape = (-1, int(head[2]), int(head[1]), 3)
    expected[path.name] = numpy.frombuffer(pixels, numpy.uint8).reshape(shape)
numpy.savez_compressed("expected.npz", **expected)
PYTHON
