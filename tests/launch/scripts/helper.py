import hashlib


def show(*models):
    """Print every bit of the models' weights, in short."""
    digest = hashlib.sha256()
    for model in models:
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().view(-1).numpy().tobytes())
    print("weights:", digest.hexdigest())
