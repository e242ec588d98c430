"""Train `tokenizer.json`, byte-level BPE, on the training sentences of all scenes. Trained models depend on the result."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from worldsim.sim.scene import ASSETS, Scene

if __name__ == "__main__":
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    scenes = sorted(path.stem for path in (ASSETS / "scenes").glob("push_block*.yaml"))
    sentences = [sentence for scene in scenes for sentence in Scene(scene).sentences()]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.save(str(ASSETS / "tokenizer.json"))
