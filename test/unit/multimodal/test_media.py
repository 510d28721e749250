"""Loading of images, videos and sounds: every accepted form, and a sentence for every bad one."""

from __future__ import annotations

import base64
import http.server
import io
import struct
import threading

import numpy as np
import pytest

pytest.importorskip("PIL")

import media_files
from PIL import Image, ImageOps

from sglang.srt.multimodal.media.audio import decode_audio
from sglang.srt.multimodal.media.budget import RequestBudget, using_budget
from sglang.srt.multimodal.media.fetch import is_public_address
from sglang.srt.multimodal.media.image import decode_image
from sglang.srt.multimodal.media.limits import MediaLimits
from sglang.srt.multimodal.media.loader import LoadOptions, load_audio, load_image, load_video
from sglang.srt.multimodal.media.sources import SourcePolicy, read_source
from sglang.srt.multimodal.media.video import decode_video, frames_from_images, uniform_indices
from sglang.srt.utils.errors import RequestError

PICTURE = media_files.picture()
PNG = media_files.encoded(PICTURE)


def pixels(content, **options):
    return np.asarray(decode_image(content, **options))


# --- sources


def test_every_form_of_a_source_gives_the_same_bytes(tmp_path):
    path = tmp_path / "a b.png"
    path.write_bytes(PNG)
    policy = SourcePolicy(any_path=True)
    forms = [
        *(PNG, bytearray(PNG), base64.b64encode(PNG).decode(), media_files.data_url(PNG)),
        *(str(path), path, path.as_uri(), media_files.data_url(PNG, "application/octet-stream")),
        base64.encodebytes(PNG).decode(),
    ]
    assert all(read_source(form, "image", policy) == PNG for form in forms)


def test_base64_that_no_file_could_be_named_by():
    """One without a slash for longer than names may be; `Engine` looks whether a file has that name."""
    text = base64.b64encode(bytes(600)).decode()
    for any_path in (False, True):
        assert read_source(text, "image", SourcePolicy(any_path=any_path)) == bytes(600)


def test_clients_name_files_under_the_root_only(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    inside, outside = root / "in.png", tmp_path / "out.png"
    for path in (inside, outside):
        path.write_bytes(PNG)
    (root / "link.png").symlink_to(outside)
    policy = SourcePolicy(root=str(root))
    assert read_source(inside.as_uri(), "image", policy) == PNG
    for bad in (outside.as_uri(), str(root / ".." / "out.png"), str(root / "link.png")):
        with pytest.raises(RequestError, match="outside the folder"):
            read_source(bad, "image", policy)
    with pytest.raises(RequestError, match="reads no files for its clients"):
        read_source(str(inside), "image", SourcePolicy())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "is empty"),
        ("not base64!", "neither a URL"),
        ("data:image/png;base64", "data URL is malformed"),
        ("data:text/html;base64,AAAA", "'text/html', which is no image"),
        ("data:image/png;base64,@@@", "neither a URL"),
        ("ftp://host/a.png", "reads no files"),
        ("file://elsewhere/a.png", "must have the form"),
        (3, "cannot be given as int"),
        ("http://user:pw@example.com/a.png", "no user name"),
        ("http://example.com\\@127.0.0.1/a.png", "percent-encoded"),
        ("http://exa mple.com/a.png", "percent-encoded"),
        ("http:///a.png", "needs a host"),
        ("http://h:99999/a.png", "malformed"),
        ("http://127.0.0.1/a.png", "not public"),
        ("http://[::1]/a.png", "not public"),
        ("http://2130706433/a.png", "not public"),
        ("http://169.254.169.254/latest", "not public"),
        ("https://localhost/a.png", "not public"),
    ],
)
def test_bad_sources_are_refused_with_a_sentence(source, message):
    with pytest.raises(RequestError, match=message) as caught:
        read_source(source, "image", SourcePolicy())
    assert 400 <= caught.value.status_code < 500


def test_addresses_inside_addresses_decide():
    assert is_public_address("8.8.8.8") and is_public_address("2606:4700::1111")
    for private in (
        *("10.0.0.1", "127.0.0.1", "0.0.0.0", "169.254.1.1", "100.64.0.1", "224.0.0.1", "fe80::1"),
        *(
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fd00::1",
            "fec0::1",
            "::",
            "word",
        ),
    ):
        assert not is_public_address(private), private


def test_files_that_are_too_large_are_refused(tmp_path):
    limits = MediaLimits(max_bytes=10)
    policy = SourcePolicy(limits, any_path=True)
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for source in (PNG, path, media_files.data_url(PNG)):
        with pytest.raises(RequestError, match="MiB that are allowed") as caught:
            read_source(source, "image", policy)
        assert caught.value.status_code == 413


# --- over HTTP


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        action = self.path.strip("/")
        if action == "slow":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            self.server.release.wait(5)
            return
        if action.startswith("to-"):
            self.send_response(302)
            self.send_header("Location", self.server.targets[action])
            self.end_headers()
            return
        self.send_response(404 if action == "missing" else 200)
        if action == "short":
            self.send_header("Content-Length", str(len(PNG) + 5))
        self.end_headers()
        self.wfile.write(PNG)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.release = threading.Event()
    base = f"http://127.0.0.1:{server.server_port}"
    server.targets = {
        "to-png": f"{base}/png",
        "to-private": f"http://localhost:{server.server_port}/png",
        "to-itself": f"{base}/to-itself",
        "to-file": "file:///etc/passwd",
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield base
    server.release.set()
    server.shutdown()
    server.server_close()


def test_urls_are_fetched_and_redirects_followed(host):
    policy = SourcePolicy(private_hosts=("127.0.0.1",))
    assert read_source(f"{host}/png", "image", policy) == PNG
    assert read_source(f"{host}/to-png", "image", policy) == PNG


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "status 404"),
        ("to-private", "'localhost' .* not public"),
        ("to-itself", "more than 3 times"),
        ("to-file", "must begin with http"),
        ("short", "could not be fetched"),
        ("slow", "did not deliver the image within 0.3 seconds"),
    ],
)
def test_hosts_that_misbehave(host, path, message):
    policy = SourcePolicy(MediaLimits(fetch_seconds=0.3), private_hosts=("127.0.0.1",))
    with pytest.raises(RequestError, match=message):
        read_source(f"{host}/{path}", "image", policy)


def test_downloads_that_are_too_large_stop(host):
    policy = SourcePolicy(MediaLimits(max_bytes=100), private_hosts=("127.0.0.1",))
    with pytest.raises(RequestError, match="MiB that are allowed"):
        read_source(f"{host}/png", "image", policy)


# --- images


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_pixels(kind):
    assert np.array_equal(pixels(media_files.encoded(PICTURE, kind)), np.asarray(PICTURE))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "LA", "RGBA", "1"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = decode_image(media_files.encoded(PICTURE.convert(mode), kind))
    assert image.mode == "RGB" and image.size == PICTURE.size


def test_alpha_is_kept_on_request():
    content = media_files.encoded(PICTURE.convert("RGBA"))
    assert decode_image(content, discard_alpha_channel=False).mode == "RGBA"


def test_16_bit_grey_is_scaled_not_cut_off():
    values = np.array([[0, 256 * 7, 65535]], np.uint16)
    content = media_files.encoded(Image.fromarray(values))
    assert pixels(content)[0, :, 0].tolist() == [0, 7, 255]


def test_rotated_photographs_stand_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    content = media_files.encoded(PICTURE, "TIFF", exif=exif)
    assert np.array_equal(pixels(content), np.rot90(np.asarray(PICTURE), -1))


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_of_a_photograph(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    image = Image.open(io.BytesIO(media_files.encoded(PICTURE, exif=exif)))
    want = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(pixels(media_files.encoded(PICTURE, exif=exif)), want)


def test_other_tags_of_a_photograph_may_be_broken():
    """Cameras and editors write such; the pixels are there, and what turns them is readable."""
    exif = struct.pack(
        "<2sHIHHHIIHHI4sI", b"II", 42, 8, 2, 0x0112, 3, 1, 6, 0x0100, 2, 4, b"abc", 0
    )
    content = media_files.encoded(PICTURE, "JPEG")
    body = b"Exif\0\0" + exif
    broken = content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:]
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(Image.open(io.BytesIO(broken)))
    assert np.array_equal(pixels(broken), np.rot90(pixels(content), -1))


def test_of_animated_images_the_first_frame_counts():
    second = media_files.picture(seed=1)
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = media_files.encoded(
            PICTURE, kind, save_all=True, append_images=[second], **options
        )
        single = media_files.encoded(PICTURE, kind, **options)
        assert np.array_equal(pixels(content), pixels(single))


def test_an_image_of_one_pixel_is_an_image():
    assert decode_image(media_files.encoded(media_files.picture(1, 1))).size == (1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a file of a known format"),
        (b"<html></html>", "not a file of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a file of a known format"),
        (PNG[: len(PNG) // 2], "cut off or broken"),
        (media_files.encoded(PICTURE, "JPEG")[:-300], "cut off or broken"),
        (media_files.png_header(300, 300), "cut off or broken"),
        (media_files.png_header(50_000, 50_000), "pixels that are allowed|at most"),
        (media_files.png_header(9000, 9000), "9000 x 9000 pixels; at most"),
        (media_files.png_header(70_000, 1), "70000 x 1 pixels; at most"),
    ],
    ids=["empty", "html", "eps", "cut png", "cut jpeg", "no data", "50k", "9k", "thin"],
)
def test_bad_images_are_refused_with_a_sentence(content, message):
    with pytest.raises(RequestError, match=message) as caught:
        decode_image(content)
    assert "0x" not in str(caught.value)


_BOMB = bytes(64 << 20)  # a thousandth of that, compressed


def test_a_file_that_unpacks_to_more_than_it_declares():
    """Rows beyond the declared ones are not unpacked, and comments only up to a limit."""
    small = media_files.png_header(3, 2, pixels=_BOMB)
    assert len(small) < 100_000 and decode_image(small).size == (3, 2)
    with pytest.raises(RequestError, match="not a file of a known format"):
        decode_image(media_files.png_header(3, 2, bytes(20), text=_BOMB))
    assert decode_image(media_files.png_header(3, 2, bytes(20), text=b"x" * 99)).size == (3, 2)


def test_the_content_decides_not_its_declared_type():
    named = media_files.data_url(PNG, "image/jpeg")
    assert np.array_equal(pixels(read_source(named, "image", SourcePolicy())), np.asarray(PICTURE))
    page = read_source(media_files.data_url(b"<svg/>", "image/png"), "image", SourcePolicy())
    with pytest.raises(RequestError, match="not a file of a known format"):
        decode_image(page)
    with pytest.raises(RequestError, match="'video/mp4', which is no image"):
        read_source(media_files.data_url(PNG, "video/mp4"), "image", SourcePolicy())


# --- videos


def sampler_of(indices):
    return lambda total, fps: [i for i in indices if i < total]


def test_sampled_frames_are_the_ones_asked_for():
    pytest.importorskip("av")
    video = decode_video(media_files.mp4(), sampler_of([1, 4, 11]))
    assert (video.indices, video.fps, video.total_num_frames) == ([1, 4, 11], 4.0, 12)
    assert video.frames.shape == (3, 48, 64, 3) and video.sampled_fps == 1.0
    assert np.allclose(video.frames.mean((1, 2, 3)), [20, 80, 220], atol=6)


def test_bad_videos_are_refused_with_a_sentence():
    pytest.importorskip("av")
    silence = media_files.wav(np.zeros(1600))
    for content, message in (
        (b"no video", "not a file of a known format"),
        (silence, "has no video in it"),
        (media_files.mp4()[:300], "not a file of a known format"),
    ):
        with pytest.raises(RequestError, match=message):
            decode_video(content, sampler_of([0]))
    for limits, message in (
        (MediaLimits(max_pixels=100), "64 x 48 pixels; at most"),
        (MediaLimits(max_frames=5), "more than 5 frames"),
        (MediaLimits(max_sampled_frames=1), "2 frames of the video"),
    ):
        with pytest.raises(RequestError, match=message):
            decode_video(media_files.mp4(), sampler_of([0, 1]), limits)


def test_frames_beyond_the_budget_are_scaled_down():
    pytest.importorskip("av")
    limits = MediaLimits(max_frame_bytes=64 * 48 * 3 // 2)
    video = decode_video(media_files.mp4(), sampler_of([0, 1]), limits)
    assert video.frames.shape == (2, 24, 32, 3)


def test_frames_of_a_client_are_limited():
    limits = MediaLimits(max_sampled_frames=3)
    options = LoadOptions(SourcePolicy(limits), sampler=uniform_indices)
    frames = [PNG] * 4
    assert load_video(frames[:3], options).indices == [0, 1, 2]
    with pytest.raises(RequestError, match="4 frames of the video would be used; at most 3"):
        load_video(frames, options)


def test_media_of_a_request_are_limited_together():
    """A picture takes 32 x 24 x 3 bytes; a video as many a frame, a sound 4 a sample."""
    size = 32 * 24 * 3
    options = LoadOptions(sampler=uniform_indices, budget=RequestBudget(5 * size))
    load_image(PNG, options)
    load_video([PNG, PICTURE], options)
    load_audio(np.zeros(size // 4, np.float32), options)
    load_image(np.asarray(PICTURE), options)
    with pytest.raises(RequestError, match="allowed together") as caught:
        load_audio(np.zeros(1, np.float32), options)
    assert caught.value.status_code == 413


def test_media_of_a_request_that_is_over_are_not_loaded():
    budget = RequestBudget()
    with using_budget(budget):
        options = LoadOptions(sampler=uniform_indices)
    budget.end()
    loads = {load_image: PNG, load_video: b"", load_audio: b""}
    for load, item in loads.items():
        with pytest.raises(RequestError, match="given up"):
            load(item, options)
    assert load_image(PNG, LoadOptions()).size == PICTURE.size


def test_a_video_may_be_its_frames():
    assert frames_from_images([PICTURE, PICTURE]).frames.shape == (2, 24, 32, 3)
    for frames in ([], [PICTURE, media_files.picture(5, 5)]):
        with pytest.raises(RequestError, match="frames"):
            frames_from_images(frames)


# --- sounds


@pytest.mark.parametrize("with_av", [True, False])
def test_sounds_are_decoded(with_av, monkeypatch):
    if with_av:
        pytest.importorskip("av")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wave = np.sin(np.arange(3200) / 20).astype(np.float32) / 2
    samples = decode_audio(media_files.wav(wave), 16000)
    assert samples.dtype == np.float32 and np.allclose(samples, wave, atol=1e-3)
    with pytest.raises(RequestError, match="has no samples|broken"):
        decode_audio(media_files.wav(np.zeros(0)), 16000)
    with pytest.raises(RequestError, match="longer than the 0.1 seconds"):
        decode_audio(media_files.wav(wave), 16000, MediaLimits(max_audio_seconds=0.1))
    with pytest.raises(RequestError, match="not a file of a known format"):
        decode_audio(b"noise", 16000)


def test_sounds_are_resampled():
    pytest.importorskip("av")
    wave = np.sin(np.arange(8000) / 20)
    assert abs(len(decode_audio(media_files.wav(wave, 8000), 16000)) - 16000) < 64
