"""What another tool does with a folder of photographs. Runs in that tool's own environment, so it imports nothing of ours.

    PEER_PYTHON peer_program.py TOOL FOLDER RESULT.json [PART OF]

TOOL: hog or cnn (face_recognition on dlib: detect and encode) or mtcnn (facenet-pytorch: detect). With PART OF only every OF-th
photograph from PART on, so that several processes share the work. Times leave imports and loading of models out.
"""

import json
import sys
import time
from pathlib import Path


def face_recognition_tool(model):
    import face_recognition  # noqa: PLC0415 - only where this tool is installed

    def process(path):
        pixels = face_recognition.load_image_file(str(path))
        boxes = face_recognition.face_locations(pixels, model=model)
        vectors = face_recognition.face_encodings(pixels, boxes)
        order = sorted(range(len(boxes)), key=lambda i: (boxes[i][0] - boxes[i][2]) * (boxes[i][1] - boxes[i][3]))
        return [[float(value) for value in vectors[i]] for i in reversed(order)]  # the largest face first

    return process


def mtcnn_tool():
    import torch  # noqa: PLC0415
    from facenet_pytorch import MTCNN  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    torch.set_num_threads(1)
    detector = MTCNN(keep_all=True, device="cpu")

    def process(path):
        boxes, _ = detector.detect(Image.open(path).convert("RGB"))
        return [] if boxes is None else [[] for _ in boxes]

    return process


TOOLS = {
    "hog": lambda: face_recognition_tool("hog"),
    "cnn": lambda: face_recognition_tool("cnn"),
    "mtcnn": mtcnn_tool,
}


def main(tool, folder, result, part="0", of="1"):
    process = TOOLS[tool]()
    paths = sorted(Path(folder).iterdir())[int(part) :: int(of)]
    process(paths[0])
    start = time.perf_counter()
    faces = {path.name: process(path) for path in paths}
    Path(result).write_text(json.dumps({"seconds": time.perf_counter() - start, "faces": faces}))


if __name__ == "__main__":
    main(*sys.argv[1:])
