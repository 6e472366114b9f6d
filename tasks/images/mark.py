"""The mark of invented pixels: drawn into the picture where everybody sees it, and written beside it where programs look."""

import io
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from tasks.model_version import ModelVersion

LABEL = "synthetic detail"
FONT_SHARE = 0.045  # of the shorter side: 17 px in a crop of 384
SMALLEST_FONT, LARGEST_FONT = 8, 28  # px
BACKGROUND = (0, 0, 0, 150)
# IPTC's vocabulary of digital source types: a photograph combined with what a trained model made.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:visage="https://visage.invalid/ns/1.0/"
 xmp:CreatorTool={tool} Iptc4xmpExt:DigitalSourceType={source} visage:Model={model} visage:Version={version}
 visage:Content={content}/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


def labelled(pixels: np.ndarray) -> np.ndarray:
    """Draw the label into the lower left corner of a picture (H, W, 3) uint8; returns a new one, equal elsewhere."""
    height, width = pixels.shape[:2]
    size = round(min(max(FONT_SHARE * min(height, width), SMALLEST_FONT), LARGEST_FONT))
    picture = Image.fromarray(pixels)
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(picture, "RGBA")
    left, top, right, bottom = draw.textbbox((0, 0), LABEL, font=font)
    pad = max(1, size // 4)
    text_width, text_height = right - left, bottom - top
    draw.rectangle((0, height - text_height - 2 * pad, text_width + 2 * pad, height), fill=BACKGROUND)
    draw.text((pad - left, height - pad - text_height - top), LABEL, font=font, fill=(255, 255, 255, 255))
    return np.asarray(picture)


def marked_png(pixels: np.ndarray, restorer: ModelVersion, what: str = "Restored face crop.") -> bytes:
    """Encode restored pixels (H, W, 3) uint8 as a PNG with the label in it, and text and XMP that say who invented what."""
    model = f"{restorer.spec.name} {restorer.version}"
    content = f"{what} {LABEL.capitalize()}: invented by {model}, not photographed."
    facts = {"tool": "Visage", "source": SOURCE_TYPE, "model": restorer.spec.name, "version": str(restorer.version)}
    text = PngInfo()
    text.add_itxt("Description", content)
    text.add_itxt("Software", f"Visage, {model}")
    packet = XMP.format(**{name: quoteattr(value) for name, value in {**facts, "content": content}.items()})
    text.add_itxt("XML:com.adobe.xmp", packet)
    file = io.BytesIO()
    Image.fromarray(labelled(pixels)).save(file, "png", pnginfo=text, compress_level=1)
    return file.getvalue()
