"""Objects whose projections, images and attenuation have closed formulas: the reference for reconstruction.

Lengths in bins of width 1 unless said otherwise; angles and axes as in `datxai.imaging.reconstruction`.
"""

import numpy as np
from scipy import integrate, special

# Modified Shepp-Logan head (Toft 1996): value, semi-axes, centre, angle in degrees
ELLIPSES = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0),
)
# gain at f, a fraction of the cutoff; zero above it, except for Butterworth
WINDOWS = {
    "ramp": np.ones_like,
    "shepp-logan": lambda f: np.sin(np.pi * np.maximum(f, 1e-12) / 2) / (np.pi * np.maximum(f, 1e-12) / 2),
    "hann": lambda f: np.cos(np.pi * f / 2) ** 2,
    "butterworth": lambda f: (1 + f**10) ** -0.5,
}


def positions(bins: int, fine: int = 1) -> np.ndarray:
    """Centres of bins (or of ``fine`` parts of each), the axis at 0."""
    return (np.arange(bins * fine) + 0.5) / fine - bins / 2


def shepp_logan(bins: int, angles_deg: np.ndarray, fine: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Projections (views, bins) by the ellipses' chords, and the image (x, y), both averaged over bins."""
    scale = 0.48 * bins
    s, normals = positions(bins, fine) / scale, -np.deg2rad(angles_deg)[:, None]
    x, y = np.meshgrid(s, s, indexing="ij")
    lines, image = np.zeros((len(angles_deg), s.size)), np.zeros_like(x)
    for value, a, b, x0, y0, degrees in ELLIPSES:
        tilt = np.deg2rad(degrees)
        image += value * (_level(x, y, a, b, x0, y0, tilt) < 1)
        width = np.hypot(a * np.cos(normals - tilt), b * np.sin(normals - tilt))
        offset = s - x0 * np.cos(normals) - y0 * np.sin(normals)
        lines += value * 2 * a * b / width**2 * np.sqrt(np.clip(width**2 - offset**2, 0, None)) * scale
    return lines.reshape(-1, bins, fine).mean(axis=2), image.reshape(bins, fine, bins, fine).mean(axis=(1, 3))


def away_from_edges(bins: int, distance: float) -> np.ndarray:
    """Points (x, y) of the head at least ``distance`` bins from every ellipse's edge (along the ellipse's radius)."""
    scale = 0.48 * bins
    x, y = np.meshgrid(*2 * [positions(bins) / scale], indexing="ij")
    inside = np.ones_like(x, bool)
    for k, (_, a, b, x0, y0, degrees) in enumerate(ELLIPSES):
        level = np.sqrt(_level(x, y, a, b, x0, y0, np.deg2rad(degrees)))
        radius = np.hypot(x - x0, y - y0)
        to_edge = np.abs(1 - 1 / np.maximum(level, 1e-12)) * radius * scale
        inside &= (to_edge > distance) & ((level < 1) | (k > 0))
    return inside


def _level(x, y, a, b, x0, y0, tilt):
    """Below 1 within an ellipse."""
    along, across = x - x0, y - y0
    u, v = along * np.cos(tilt) + across * np.sin(tilt), across * np.cos(tilt) - along * np.sin(tilt)
    return (u / a) ** 2 + (v / b) ** 2


def blur_as_expected(image: np.ndarray, name: str, fine: int, pad: int = 4) -> np.ndarray:
    """The best possible filtered back projection at Nyquist of an image given in ``fine`` parts of a pixel.

    Three low passes: averaging over bins (sinc), the filter's window, linear interpolation between bins (sinc
    squared). The result is taken at the pixels' centres. Not modelled: aliasing and the number of views.
    """
    size = [n * pad for n in image.shape]
    f = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])) * fine
    gain = WINDOWS[name](2 * f) * (f <= 0.5) * np.sinc(f) ** 3
    blurred = np.fft.ifft2(np.fft.fft2(image, size) * gain).real
    k = fine // 2 - 1 + fine * np.arange(image.shape[0] // fine)
    return (
        blurred[np.ix_(k, k)] + blurred[np.ix_(k + 1, k)] + blurred[np.ix_(k, k + 1)] + blurred[np.ix_(k + 1, k + 1)]
    ) / 4


def gaussian_projections(
    angles_deg: np.ndarray,
    centre: tuple[float, float] = (0.0, 0.0),
    sigma: float = 3.0,
    bins: int = 64,
    shift: float = 0.0,
    amount: float = 1000.0,
) -> np.ndarray:
    """A Gaussian of ``amount`` counts at ``centre`` (x, y), in bins; the axis projects ``shift`` off the middle."""
    theta = np.deg2rad(angles_deg)[:, None]
    s = positions(bins) - shift
    middle = centre[0] * np.cos(theta) - centre[1] * np.sin(theta)
    return amount * np.exp(-((s - middle) ** 2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))


def gaussian_image(
    centre: tuple[float, float], sigma: float = 3.0, bins: int = 64, amount: float = 1000.0
) -> np.ndarray:
    """The image (x, y) of `gaussian_projections`."""
    x, y = np.meshgrid(*2 * [positions(bins)], indexing="ij")
    square = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
    return amount * np.exp(-square / (2 * sigma**2)) / (2 * np.pi * sigma**2)


def point_fwhm(name: str, cutoff: float, sigma: float, interpolated: bool = True) -> float:
    """Width of a reconstructed Gaussian, ``cutoff`` per bin: the inverse Hankel transform of window x source.

    Linear interpolation between bins is a further low pass (sinc squared), which is optional.
    """

    def spread(r):
        def integrand(f):
            window = WINDOWS[name](np.asarray(f / cutoff)) * (np.sinc(f) ** 2 if interpolated else 1)
            return f * window * np.exp(-2 * (np.pi * f * sigma) ** 2) * special.j0(2 * np.pi * r * f)

        return integrate.quad(integrand, 0, 0.5 if name == "butterworth" else cutoff)[0]

    r = np.linspace(0, 6, 200)
    return 2 * float(np.interp(-0.5, [-spread(v) / spread(0) for v in r], r))


def profile_fwhm(profile: np.ndarray) -> float:
    """Width of a peak whose flank is ``profile``, from its top in steps of 1: linear in ln over square."""
    falling = profile[: np.argmax(profile < 0.3 * profile[0]) + 1] / profile[0]
    r = np.arange(falling.size)
    return 2 * float(np.sqrt(np.interp(np.log(2), -np.log(falling), r**2)))


def chang_factor(radius_cm: float, disc_cm: float, per_cm: float) -> float:
    """Reciprocal of the mean attenuation in all directions, from a point in a uniform disc."""

    def passed(angle):
        path = np.sqrt(disc_cm**2 - (radius_cm * np.sin(angle)) ** 2) - radius_cm * np.cos(angle)
        return np.exp(-per_cm * path)

    return 2 * np.pi / integrate.quad(passed, 0, 2 * np.pi)[0]
